/*
 * memory.h
 *	  How much memory the machine can still give this process.
 */
#ifndef QWEN_MEMORY_H
#define QWEN_MEMORY_H

#include <stdint.h>

/*
 * Bytes that can be used without swapping: what the kernel calls available (free memory and page cache that can be
 * given up), or what the process's memory cgroups leave, whichever is less.  UINT64_MAX when nothing can be found out.
 */
uint64_t qwen_memory_available(void);

/* "1.5 GiB", in out, which is returned. */
const char *qwen_memory_text(char *out, int size, uint64_t bytes);

#endif
