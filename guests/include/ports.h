/* The ports guests use, as in pykvm/layout.py (a test compares the two). For C and assembler. */
#ifndef GUESTS_PORTS_H
#define GUESTS_PORTS_H

#define PORT_POST       0x080
#define PORT_DEBUG_EXIT 0x0F4 /* QEMU isa-debug-exit: leave with (value << 1) | 1 */
#define PORT_COM1       0x3F8
#define PORT_FW_CFG     0x510 /* selector; data at +1 */
#define PORT_EXIT_CODE  0x5F8 /* a byte written here ends the machine with that code */
#define PORT_SNAPSHOT   0x5F9 /* a byte written here asks for a snapshot */
#define PORT_RESET      0xCF9

#endif
