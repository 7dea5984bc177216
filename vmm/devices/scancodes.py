"""Scan codes: which keys make a character on a US keyboard, in the keyboard's own set 2, and the 8042's translation to set 1.

Knows tables only. Source: IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device Controller" and
"101- and 102-Key Keyboards".
"""

SHIFT, CONTROL = 0x12, 0x14
BREAK = 0xF0

_PLAIN = {
    0x0E: "`~", 0x16: "1!", 0x1E: "2@", 0x26: "3#", 0x25: "4$", 0x2E: "5%", 0x36: "6^", 0x3D: "7&", 0x3E: "8*", 0x46: "9(", 0x45: "0)",
    0x4E: "-_", 0x55: "=+", 0x54: "[{", 0x5B: "]}", 0x5D: "\\|", 0x4C: ";:", 0x52: "'\"", 0x41: ",<", 0x49: ".>", 0x4A: "/?",
    0x15: "qQ", 0x1D: "wW", 0x24: "eE", 0x2D: "rR", 0x2C: "tT", 0x35: "yY", 0x3C: "uU", 0x43: "iI", 0x44: "oO", 0x4D: "pP",
    0x1C: "aA", 0x1B: "sS", 0x23: "dD", 0x2B: "fF", 0x34: "gG", 0x33: "hH", 0x3B: "jJ", 0x42: "kK", 0x4B: "lL",
    0x1A: "zZ", 0x22: "xX", 0x21: "cC", 0x2A: "vV", 0x32: "bB", 0x31: "nN", 0x3A: "mM",
}
_SINGLE = {" ": 0x29, "\n": 0x5A, "\r": 0x5A, "\t": 0x0D, "\b": 0x66, "\x7f": 0x66, "\x1b": 0x76}

KEYS: dict[str, tuple[int, int | None]] = {char: (code, None) for char, code in _SINGLE.items()}
"""Character -> (key in set 2, modifier key held with it or None)."""
for _code, _pair in _PLAIN.items():
    KEYS[_pair[0]] = (_code, None)
    KEYS[_pair[1]] = (_code, SHIFT)
for _i in range(1, 27):
    KEYS.setdefault(chr(_i), (KEYS[chr(_i + 0x60)][0], CONTROL))
for _char, _key in zip("\x00\x1c\x1d\x1e\x1f", "2\\]6-", strict=True):
    KEYS[_char] = (KEYS[_key][0], CONTROL)

TRANSLATION = bytes.fromhex(
    "ff 43 41 3f 3d 3b 3c 58 64 44 42 40 3e 0f 29 59 65 38 2a 70 1d 10 02 5a 66 71 2c 1f 1e 11 03 5b"
    "67 2e 2d 20 12 05 04 5c 68 39 2f 21 14 13 06 5d 69 31 30 23 22 15 07 5e 6a 72 32 24 16 08 09 5f"
    "6b 33 25 17 18 0b 0a 60 6c 34 35 26 27 19 0c 61 6d 73 28 74 1a 0d 62 6e 3a 36 1c 1b 75 2b 63 76"
    "55 56 77 78 79 7a 0e 7b 7c 4f 7d 4b 47 7e 7f 6f 52 53 50 4c 4d 48 01 45 57 4e 51 4a 37 49 46 54"
    "80 81 82 41 54"
) + bytes(range(0x85, 0x100))
"""What the 8042 makes of a byte of set 2: its byte of set 1. BREAK itself vanishes and sets bit 7 of the byte after it."""


def strokes(text: str) -> bytes:
    """The bytes in set 2 that typing `text` sends: each key pressed and released, with Shift or Control around it where needed.
    Characters that a US keyboard lacks are left out."""
    sent = bytearray()
    for char in text:
        if char not in KEYS:
            continue
        key, modifier = KEYS[char]
        if modifier is not None:
            sent.append(modifier)
        sent += bytes((key, BREAK, key))
        if modifier is not None:
            sent += bytes((BREAK, modifier))
    return bytes(sent)
