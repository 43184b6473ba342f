/*
 * test_numa.c
 *	  Lists of processors as the kernel writes them, and memory that stays
 *	  usable whatever the machine's nodes.
 */
#include "unit.h"

#include <sys/mman.h>

#include "kernels/numa.h"

static bool
meets(const char *list, int cpu)
{
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(cpu, &cpus);
	return qwen_cpu_list_meets(list, &cpus);
}

static void
lists_of_processors_are_read(void **state)
{
	assert_true(meets("0\n", 0));
	assert_false(meets("0\n", 1));
	assert_true(meets("0-15,32-47\n", 0));
	assert_true(meets("0-15,32-47\n", 15));
	assert_false(meets("0-15,32-47\n", 16));
	assert_false(meets("0-15,32-47\n", 31));
	assert_true(meets("0-15,32-47\n", 32));
	assert_true(meets("0-15,32-47\n", 47));
	assert_false(meets("0-15,32-47\n", 48));
	assert_true(meets("1,3,5", 5));
	assert_false(meets("1,3,5", 4));
	assert_false(meets("\n", 0)); /* a node without processors */
	assert_false(meets("", 0));
	assert_true(meets("0-99999999999\n", CPU_SETSIZE - 1));
}

static void
spread_memory_is_zero_and_can_be_written(void **state)
{
	size_t bytes = 8 << 20;
	char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(p, MAP_FAILED);
	qwen_numa_interleave(p, bytes);
	for (size_t i = 0; i < bytes; i += 4096)
	{
		assert_int_equal(p[i], 0);
		p[i] = 1;
	}
	munmap(p, bytes);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(lists_of_processors_are_read),
		cmocka_unit_test(spread_memory_is_zero_and_can_be_written),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
