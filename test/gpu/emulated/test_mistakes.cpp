/*
 * test_mistakes.cpp
 *	  Mistakes that are found: most end the process, so each is made in one of
 *	  its own.
 */
#include "test_emulated.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

/* What a process of its own says when it does this, and how it ends. */
static void
test_death(void (*mistake)(void), int signal, const char *message, const char *what)
{
	char text[4096];
	size_t n = 0;
	int fds[2], status;
	ssize_t got;
	pid_t child;

	if (pipe(fds) != 0 || (child = fork()) < 0)
		abort();
	if (child == 0)
	{
		(void) dup2(fds[1], STDERR_FILENO);
		mistake();
		(void) cudaDeviceSynchronize();
		_exit(0);
	}
	(void) close(fds[1]);
	while (n < sizeof(text) - 1 && (got = read(fds[0], text + n, sizeof(text) - 1 - n)) > 0)
		n += (size_t) got;
	text[n] = '\0';
	(void) close(fds[0]);
	(void) waitpid(child, &status, 0);
	ok((signal ? WIFSIGNALED(status) && WTERMSIG(status) == signal : WIFEXITED(status)) && strstr(text, message), what);
}

static __global__ void
half_barrier_kernel(void)
{
	if (threadIdx.x < 16)
		__syncthreads();
	else
		__syncwarp();
}

static __global__ void
two_barriers_kernel(void)
{
	if (threadIdx.x < 32)
		__syncthreads();
	else
		__syncthreads();
}

static __global__ void
two_shuffles_kernel(int *out)
{
	int x = (int) threadIdx.x;

	if (x < 16)
		x = __shfl_xor_sync(ALL, x, 1);
	else
		x = __shfl_xor_sync(ALL, x, 2);
	out[threadIdx.x] = x;
}

static __global__ void
part_of_mma_kernel(void)
{
	uint32_t a[4] = {0}, b[2] = {0};
	float d[4] = {0};

	if (threadIdx.x < 31)
		mma_bf16(d, a, b);
}

static __global__ void
write_kernel(int *x, int at)
{
	x[at] = 0;
}

static __global__ void
overrun_kernel(void)
{
	CUDA_SHARED(int, shared);

	shared[64 + threadIdx.x] = 0;
}

static __global__ void
crooked_kernel(int *x)
{
	__shared__ __align__(16) char buffer[32];

	copy_async_16(buffer + 8, x);
}

static int *
some_memory(void)
{
	int *d;

	(void) cudaMalloc(&d, 100 * sizeof(int));
	return d;
}

static void
test_deaths(void)
{
	test_death([] { CUDA_LAUNCH(half_barrier_kernel, 1, 32, 0, nullptr); }, SIGABRT,
			   "deadlock in kernel half_barrier_kernel", "a deadlock is found");
	test_death([] { CUDA_LAUNCH(two_barriers_kernel, 1, 64, 0, nullptr); }, SIGABRT, "two_barriers_kernel",
			   "two barriers are not one");
	test_death([] { CUDA_LAUNCH(two_shuffles_kernel, 1, 32, 0, nullptr, some_memory()); }, SIGABRT,
			   "two_shuffles_kernel", "two shuffles are not one");
	test_death([] { CUDA_LAUNCH(part_of_mma_kernel, 1, 32, 0, nullptr); }, SIGABRT, "part_of_mma_kernel",
			   "a product needs the whole warp");
	test_death([] { CUDA_LAUNCH(write_kernel, 1, 1, 0, nullptr, some_memory(), 100); }, SIGABRT, "beyond 400 bytes",
			   "a write just beyond device memory is found");
	test_death([] { CUDA_LAUNCH(write_kernel, 1, 1, 0, nullptr, some_memory(), -1); }, SIGABRT, "before 400 bytes",
			   "a write just before it");
	test_death([] { CUDA_LAUNCH(write_kernel, 1, 1, 0, nullptr, some_memory(), 128); }, SIGSEGV,
			   "byte 512 of 400 bytes of device 0", "a write far beyond");
	test_death([] { CUDA_LAUNCH(overrun_kernel, 1, 1, 256, nullptr); }, SIGSEGV,
			   "byte 256 of 256 bytes of dynamic shared memory", "a write beyond dynamic shared memory");
	test_death([] { CUDA_LAUNCH(crooked_kernel, 1, 1, 0, nullptr, some_memory()); }, SIGABRT, "crooked_kernel",
			   "a copy to an address that is not a multiple of 16");
}

/* The error of a call, and what the runtime says afterwards, twice. */
static void
tell(cudaError_t error)
{
	cudaError_t last = cudaGetLastError();

	emulated_say("%s, %s, %s", cudaGetErrorName(error), cudaGetErrorName(last), cudaGetErrorName(cudaGetLastError()));
}

#define INVALID "\ncudaErrorInvalidValue, cudaErrorInvalidValue, cudaSuccess\n"

static int host_memory[200];

static void
test_wrong_copies(void)
{
	test_death([] { tell(cudaMemcpy(some_memory(), host_memory, 401, cudaMemcpyHostToDevice)); }, 0,
			   "the target of a copy of 401 bytes is not device memory: byte 0 of 400 bytes of device 0" INVALID,
			   "a copy to more than there is");
	test_death([] { tell(cudaMemcpy(host_memory, some_memory() + 99, 8, cudaMemcpyDeviceToHost)); }, 0,
			   "the source of a copy of 8 bytes is not device memory: byte 396 of 400 bytes of device 0" INVALID,
			   "a copy from beyond");
	test_death([] { tell(cudaMemcpy(host_memory, host_memory + 4, 4, cudaMemcpyHostToDevice)); }, 0,
			   "the target of a copy of 4 bytes is not device memory: far from device memory" INVALID,
			   "a copy the wrong way");
	test_death([] { tell(cudaMemcpyPeerAsync(some_memory(), 0, some_memory(), 1, 4, nullptr)); }, 0,
			   "a copy from device 1 to 0 has memory of devices 0 and 0" INVALID, "a copy of another device's memory");
	test_death([] { tell(cudaMemset(some_memory(), 0, 401)); }, 0,
			   "the target of a copy of 401 bytes is not device memory: byte 0 of 400 bytes of device 0" INVALID,
			   "setting more memory than there is");
}

static void
die_of_second_kernel(void)
{
	int *d = some_memory();

	(void) setenv("QWEN_EMULATED_GPU_FAULT", "2", 1);
	(void) cudaMemset(d, 0, sizeof(int));
	for (int i = 0; i < 3; i++)
	{
		CUDA_LAUNCH(add_kernel, 1, 1, 0, nullptr, d, 1);
		emulated_say("%d: %s", i, cudaGetErrorName(cudaDeviceSynchronize()));
	}
	emulated_say("sum %d", *d);
}

static void
test_dead_device(void)
{
	test_death(die_of_second_kernel, 0,
			   "0: cudaSuccess\n1: cudaErrorIllegalAddress\n2: cudaErrorIllegalAddress\nsum 1\n",
			   "a device that dies stays dead");
}

void
test_mistakes(void)
{
	test_deaths();
	test_wrong_copies();
	test_dead_device();
}
