/*
 * numa.c
 *	  Memory of machines that have several nodes of it.
 *
 * Every thread of a device reads all over the weights: which thread takes
 * which strips is a matter of chance.  Pages are therefore spread evenly, so
 * that a product draws on all nodes' memory at once.  Left to the thread that
 * first touches them, they would pile up on the nodes where the loader's
 * threads happened to run.
 *
 * The kernel is asked directly; libnuma would bring nothing else.  Refusals
 * cost speed alone.
 */
#include "numa.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Of linux/mempolicy.h, which does not come with every C library. */
#define MPOL_DEFAULT 0
#define MPOL_INTERLEAVE 3

/* As many nodes as a word has bits: the largest machines have 32. */
#define MAX_NODES 64

static unsigned long nodes; /* to spread over, as bits; 0: leave it */
static pthread_once_t nodes_once = PTHREAD_ONCE_INIT;

bool
qwen_cpu_list_meets(const char *list, const cpu_set_t *cpus)
{
	for (;;)
	{
		char *end;
		unsigned long first = strtoul(list, &end, 10), last = first;

		if (end == list)
			return false;
		if (*end == '-')
			last = strtoul(end + 1, &end, 10);
		for (unsigned long cpu = first; cpu <= last && cpu < CPU_SETSIZE; cpu++)
			if (CPU_ISSET(cpu, cpus))
				return true;
		if (*end != ',')
			return false;
		list = end + 1;
	}
}

static bool
node_meets(int node, const cpu_set_t *cpus)
{
	char path[64], list[4096];
	FILE *f;
	bool meets;

	snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/cpulist", node);
	f = fopen(path, "r");
	if (!f)
		return false;
	meets = fgets(list, sizeof(list), f) && qwen_cpu_list_meets(list, cpus);
	fclose(f);
	return meets;
}

static void
find_nodes(void)
{
	unsigned long found = 0;
	int policy;
	cpu_set_t cpus;

	if (sched_getaffinity(0, sizeof(cpus), &cpus) != 0 || syscall(SYS_get_mempolicy, &policy, NULL, 0, NULL, 0) != 0 ||
		policy != MPOL_DEFAULT)
		return;
	for (int node = 0; node < MAX_NODES; node++)
		if (node_meets(node, &cpus))
			found |= 1ul << node;
	if (found & (found - 1)) /* more than one */
		nodes = found;
}

void
qwen_numa_interleave(void *p, size_t bytes)
{
	pthread_once(&nodes_once, find_nodes);
	if (nodes)
		syscall(SYS_mbind, p, bytes, MPOL_INTERLEAVE, &nodes, MAX_NODES + 1, 0);
}
