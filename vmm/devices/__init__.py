"""The devices of the machine, one hardware noun a file. A device knows its registers and its lines, never its addresses."""
