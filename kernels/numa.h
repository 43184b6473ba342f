/*
 * numa.h
 *	  Memory of machines that have several nodes of it.
 */
#ifndef QWEN_NUMA_H
#define QWEN_NUMA_H

#include <sched.h>
#include <stdbool.h>
#include <stddef.h>

/*
 * Has the pages of a mapping that nobody has touched taken in turn from the nodes on whose processors this process may
 * run.  Does nothing where that is one node, or where the process was started with a policy of its own (numactl).
 */
void qwen_numa_interleave(void *p, size_t bytes);

/* Whether one of the processors in a list such as "0-15,32-47", as the kernel writes them, is in the set. */
bool qwen_cpu_list_meets(const char *list, const cpu_set_t *cpus);

#endif
