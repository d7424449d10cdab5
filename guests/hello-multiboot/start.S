/* The multiboot header: how a loader knows this image for what it is (Multiboot Specification
 * 0.6.96, §3.1.1 The layout of Multiboot header): within the first 8192 bytes of the file, at a
 * multiple of 4. An ELF image needs no addresses here. */

        .section .multiboot, "a"
        .balign 4
        .set    FLAGS, 1 << 0 | 1 << 1  /* modules at page boundaries; tell me about memory */
        .long   0x1BADB002
        .long   FLAGS
        .long   -(0x1BADB002 + FLAGS)   /* the three add up to 0 */

#include "start32.S"
