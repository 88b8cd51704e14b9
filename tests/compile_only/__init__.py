"""The lane that needs no GPU: every GPU kernel is compiled, and what it costs is printed."""
