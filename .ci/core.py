"""``core.py _C.SO``: a compiled core without torch or the package gives Philox's published numbers."""

import ctypes
import importlib.util
import sys

KNOWN = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)  # Salmon et al. 2011: counter and key of zeros
BITS = 0

spec = importlib.util.spec_from_file_location("sdkernels._C", sys.argv[1])
if spec is None or spec.loader is None:
    sys.exit(f"{sys.argv[1]} is no module")
core = importlib.util.module_from_spec(spec)
spec.loader.exec_module(core)
zero, out = (ctypes.c_int64 * 1)(), (ctypes.c_int64 * len(KNOWN))()
address = ctypes.addressof(zero)
code = core.random_stream(address, address, address, ctypes.addressof(out), 1, 1, len(KNOWN), 0, BITS, 1)
if code or tuple(out) != KNOWN:
    sys.exit(f"error code {code}, {list(map(hex, out))}")
