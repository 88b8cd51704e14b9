"""Made by csrc/fit_normals.py, which says how; the constant term comes first, each number is a float32."""

LOG = (
    float.fromhex("-0x1.0000000000000p+1"),
    float.fromhex("0x1.0000000000000p+0"),
    float.fromhex("-0x1.5556d80000000p-1"),
    float.fromhex("0x1.0003800000000p-1"),
    float.fromhex("-0x1.98d8240000000p-2"),
    float.fromhex("0x1.5382a40000000p-2"),
    float.fromhex("-0x1.3172fa0000000p-2"),
    float.fromhex("0x1.242fd20000000p-2"),
    float.fromhex("-0x1.645e560000000p-3"),
)
SIN = (
    float.fromhex("0x1.921fb60000000p+0"),
    float.fromhex("-0x1.4abc240000000p-1"),
    float.fromhex("0x1.4680a40000000p-4"),
    float.fromhex("-0x1.33198e0000000p-8"),
)
COS = (
    float.fromhex("0x1.0000000000000p+0"),
    float.fromhex("-0x1.3bd3cc0000000p+0"),
    float.fromhex("0x1.03c1b00000000p-2"),
    float.fromhex("-0x1.55b2b40000000p-6"),
    float.fromhex("0x1.d4f6320000000p-11"),
)
