"""The binary translator: guest code in, translated code out. Knows x86 code; knows no guest, no Unicorn and no device."""
