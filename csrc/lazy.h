/* Lazy memory, among the C files: what lazy.c, its losses (lost.c) and a vCPU share. */
#ifndef PK_LAZY_H
#define PK_LAZY_H

#include "core.h"

/* CRC-32 as zlib has it, of a piece of memory. */
uint32_t pk_crc32(const uint8_t *data, size_t len);

/* Let the page at `offset` be lost: whoever wants it in the kernel (KVM, a read into it) gets
 * EFAULT; our own code reads zeros, and is not ended for it. */
int pk_lost_add(const struct pk_mem *mem, uint64_t offset);
/* The memory is no longer lazy, or is about to be unmapped. */
void pk_lost_remove(const struct pk_mem *mem);

/* A vCPU whose memory is lazy must not run when some of it is lost. */
int pk_lazy_is_lost(const struct pk_lazy *lazy);
void pk_lazy_remove_vcpu(struct pk_lazy *lazy, struct pk_vcpu *vcpu);

#endif
