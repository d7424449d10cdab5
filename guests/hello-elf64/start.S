/* An ELF64 image with nothing else to mark it is entered as a Linux vmlinux. */
#include "start64.S"
