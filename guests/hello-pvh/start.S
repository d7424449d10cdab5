/* The note that makes an ELF image bootable by PVH: XEN_ELFNOTE_PHYS32_ENTRY (18), whose contents
 * are the address to start at (Xen docs/misc/pvh.pandoc; xen/include/public/elfnote.h). */

        .section .note.Xen, "a", @note
        .balign 4
        .long   4                       /* length of the name */
        .long   4                       /* length of the contents */
        .long   18                      /* type */
        .asciz  "Xen"
        .long   _start

#include "start32.S"
