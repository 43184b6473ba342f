/*
 * test_emulated.cpp
 *	  Does the model of CUDA do what CUDA does, and does it find what it is
 *	  there to find?  TAP.
 */
#include "test_emulated.h"

#include <stdio.h>

static int n_tests;
static int n_failed;

void
ok(bool passed, const char *what)
{
	printf("%sok %d - %s\n", passed ? "" : "not ", ++n_tests, what);
	/* tests fork: what is left in the buffer would be written twice */
	fflush(stdout);
	n_failed += !passed;
}

int
main(void)
{
	(void) setenv("QWEN_EMULATED_GPUS", "2", 1);
	test_threads();
	test_matrices();
	test_runtime();
	test_mistakes();
	printf("1..%d\n", n_tests);
	return n_failed > 0;
}
