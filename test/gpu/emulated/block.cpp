/*
 * block.cpp
 *	  Blocks of threads: fibers, barriers, meetings of a warp, copies behind
 *	  a thread's back.
 *
 * A fiber runs until it has to wait for others; then the next one of its warp
 * runs, then those of other warps.  Threads that never meet thus run one
 * after the other without a switch, and threads between two meetings are as
 * far apart as they may be: what one reads that another has not been made to
 * write yet is seen to be missing.  With QWEN_EMULATED_ORDER=reverse the last
 * ones run first, which shows the other half of such mistakes.
 *
 * A switch saves what a call must preserve and changes the stack, some ten
 * instructions.  Each fiber gets its stack when it first runs and leaves it to
 * others when it ends.
 */
#include "emulated_math.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

#ifndef __x86_64__
#error "fibers are switched by a few instructions of x86-64"
#endif

#define PAGE ((size_t) 4096)
#define STACK_BYTES ((size_t) 128 << 10)
/* The tops of stacks lie apart by this, or all of them would share a few lines of the cache. */
#define STACK_STAGGER 640
#define MAX_WARPS (EMULATED_MAX_THREADS / EMULATED_WARP)

/* Lanes are bits. A lane is alive, and ready or waiting in one of two ways, until it ends. */
typedef struct warp
{
	uint32_t alive;
	uint32_t ready;
	uint32_t met;     /* wait for the rest of the warp */
	uint32_t blocked; /* wait at the block's barrier */
	/* of the meeting that is under way */
	emulated_operation operation;
	int line;
	emulated_finish finish;
	unsigned turn; /* counts meetings: words of one stay while the next one's are written */
	uint64_t words[2][EMULATED_WARP];
} warp;

/* A copy that has been asked for. */
typedef struct late_copy
{
	void *dst;
	const void *src;
	int valid;
	int group;
} late_copy;

typedef struct thread_copies
{
	std::vector<late_copy> list;
	int groups; /* committed so far */
} thread_copies;

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

/* The block that runs. */
static struct
{
	const emulated_kernel *kernel; /* NULL: none */
	const emulated_work *call;
	unsigned n_threads;
	unsigned thread; /* the one that runs */
	unsigned alive;
	unsigned waiting; /* at the barrier */
	int line;         /* of the barrier */
	void *shared;
	warp warps[MAX_WARPS];
	void *stack_pointers[EMULATED_MAX_THREADS]; /* NULL: has not run yet */
	uint3 index[EMULATED_MAX_THREADS];
	thread_copies copies[EMULATED_MAX_THREADS];
} block;

/* Stacks, and those of them that nobody uses. */
static char *stacks;
static unsigned free_stacks[EMULATED_MAX_THREADS];
static unsigned n_free_stacks;
static unsigned own_stack[EMULATED_MAX_THREADS]; /* of a thread that has run */

static void *caller; /* stack pointer of emulated_run */

/* Dynamic shared memory ends where memory that nobody may touch begins. */
static char *
shared_end(void)
{
	static char *end;

	if (!end)
	{
		size_t bytes = (EMULATED_MAX_SHARED + PAGE - 1) / PAGE * PAGE;
		void *map = mmap(nullptr, bytes + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (map == MAP_FAILED)
			emulated_die("emulated CUDA: no shared memory: %s", strerror(errno));
		end = static_cast<char *>(map) + bytes;
		(void) mprotect(end, PAGE, PROT_NONE);
	}
	return end;
}

/* ---- failures ---- */

static const char *
operation_name(emulated_operation operation)
{
	static const char *const names[] = {
		"__syncwarp", "__shfl_sync", "__shfl_xor_sync", "__shfl_down_sync", "__ballot_sync", "load_matrices", "mma"};

	return names[operation];
}

#define WHERE "emulated CUDA: kernel %s, block (%u, %u, %u), thread (%u, %u, %u): "
#define WHERE_ARGS block.kernel->name, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z

static void
die_if(bool wrong, const char *what)
{
	if (wrong)
		emulated_die(WHERE "%s", WHERE_ARGS, what);
}

/* Some threads wait, and none can run. */
[[noreturn]] static void
deadlock(void)
{
	emulated_say("emulated CUDA: deadlock in kernel %s, block (%u, %u, %u) of %u threads", block.kernel->name,
				 blockIdx.x, blockIdx.y, blockIdx.z, block.n_threads);
	if (block.waiting > 0)
		emulated_say("    %u of %u threads wait at the barrier of line %d", block.waiting, block.alive, block.line);
	for (unsigned i = 0; i * EMULATED_WARP < block.n_threads; i++)
		if (block.warps[i].met)
			emulated_say("    lanes %08x of %08x of warp %u wait in %s of line %d", block.warps[i].met,
						 block.warps[i].alive, i, operation_name(block.warps[i].operation), block.warps[i].line);
	abort();
}

/* What is at an address that may not be touched. */
static void
describe_fault(const char *p, char *text, size_t size)
{
	if (stacks && p >= stacks && p < stacks + STACK_BYTES * EMULATED_MAX_THREADS)
		snprintf(text, size, "the stack of a fiber has overflowed");
	else if (p >= shared_end() && p < shared_end() + PAGE)
		snprintf(text, size, "byte %zu of %zu bytes of dynamic shared memory",
				 (size_t) (p - static_cast<char *>(block.shared)), block.kernel->shared);
	else
		emulated_describe_address(p, text, size);
}

/* A fault of the processor: says which kernel it was and lets the signal do its work. */
static void
fault(int signal, siginfo_t *info, void *context)
{
	char text[160];

	(void) context;
	if (block.kernel)
	{
		describe_fault(static_cast<const char *>(info->si_addr), text, sizeof(text));
		emulated_say(WHERE "%s at %p: %s", WHERE_ARGS, strsignal(signal), info->si_addr, text);
	}
	(void) ::signal(signal, SIG_DFL);
}

/* The handler has a stack of its own: a fiber's may be what has overflowed. */
static void
watch_for_faults(void)
{
	static const int signals[] = {SIGSEGV, SIGBUS};
	static thread_local char *stack;
	struct sigaction action = {};
	struct sigaction present;
	stack_t alternate = {};

	if (stack)
		return;
	stack = static_cast<char *>(malloc(STACK_BYTES));
	alternate.ss_sp = stack;
	alternate.ss_size = STACK_BYTES;
	if (!stack || sigaltstack(&alternate, nullptr) != 0)
		return;
	action.sa_sigaction = fault;
	action.sa_flags = SA_SIGINFO | SA_ONSTACK;
	for (int signal : signals)
		if (sigaction(signal, nullptr, &present) == 0 && present.sa_handler == SIG_DFL)
			(void) sigaction(signal, &action, nullptr);
}

/* ---- fibers ---- */

/* Saves the stack pointer in *from, goes on where `to` was saved. */
extern "C" void emulated_switch(void **from, void *to);

asm(".pushsection .text\n"
	".hidden emulated_switch\n"
	".globl emulated_switch\n"
	".type emulated_switch, @function\n"
	"emulated_switch:\n"
	"	pushq %rbp\n"
	"	pushq %rbx\n"
	"	pushq %r12\n"
	"	pushq %r13\n"
	"	pushq %r14\n"
	"	pushq %r15\n"
	"	movq %rsp, (%rdi)\n"
	"	movq %rsi, %rsp\n"
	"	popq %r15\n"
	"	popq %r14\n"
	"	popq %r13\n"
	"	popq %r12\n"
	"	popq %rbx\n"
	"	popq %rbp\n"
	"	ret\n"
	".size emulated_switch, . - emulated_switch\n"
	".popsection\n");

static void run_threads(void);

/* One mapping; the lowest page of each stack is out of bounds. */
static void
make_stacks(void)
{
	size_t bytes = STACK_BYTES * EMULATED_MAX_THREADS;
	void *map = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (map == MAP_FAILED)
		emulated_die("emulated CUDA: no memory for stacks: %s", strerror(errno));
	stacks = static_cast<char *>(map);
	for (unsigned i = 0; i < EMULATED_MAX_THREADS; i++)
	{
		(void) mprotect(stacks + i * STACK_BYTES, PAGE, PROT_NONE);
		free_stacks[i] = EMULATED_MAX_THREADS - 1 - i;
	}
	n_free_stacks = EMULATED_MAX_THREADS;
}

/* A free stack on which emulated_switch finds run_threads as the place to go on; at its entry the stack is as after a call. */
static void *
new_stack(unsigned thread)
{
	unsigned i = free_stacks[--n_free_stacks];
	void **top = reinterpret_cast<void **>(stacks + (i + 1) * STACK_BYTES - i % EMULATED_WARP * STACK_STAGGER);

	own_stack[thread] = i;
	top -= 2;
	top[0] = reinterpret_cast<void *>(run_threads);
	top[1] = nullptr;
	return top - 6;
}

/* Is the last one first? */
static bool
order_is_reversed(void)
{
	const char *order = getenv("QWEN_EMULATED_ORDER");

	return order && strcmp(order, "reverse") == 0;
}

static const bool reversed = order_is_reversed();

static inline unsigned
first_of(uint32_t bits)
{
	return reversed ? 31 - (unsigned) __builtin_clz(bits) : (unsigned) __builtin_ctz(bits);
}

/* The thread to run next, of the running one's warp if it can be; none: n_threads. */
static unsigned
choose(void)
{
	unsigned n_warps = (block.n_threads + EMULATED_WARP - 1) / EMULATED_WARP, w = block.thread / EMULATED_WARP;

	for (unsigned i = 0; !block.warps[w].ready; i++)
	{
		if (i == n_warps)
			return block.n_threads;
		w = reversed ? n_warps - 1 - i : i;
	}
	return w * EMULATED_WARP + first_of(block.warps[w].ready);
}

static void
become(unsigned thread)
{
	block.thread = thread;
	threadIdx = block.index[thread];
}

/* Lets others run until somebody has made this thread ready. */
static void
wait_for_others(void)
{
	unsigned from = block.thread, to = choose();

	if (to == block.n_threads)
		deadlock();
	become(to);
	if (!block.stack_pointers[to])
		block.stack_pointers[to] = new_stack(to);
	emulated_switch(&block.stack_pointers[from], block.stack_pointers[to]);
}

static void leave(void);

/* What a fiber does: one thread, and those after it that have not begun. */
static void
run_threads(void)
{
	void *unused;

	for (;;)
	{
		unsigned from = block.thread, to;

		(*block.call)();
		leave();
		to = choose();
		if (to == block.n_threads && block.alive > 0)
			deadlock();
		if (to < block.n_threads && !block.stack_pointers[to])
		{
			own_stack[to] = own_stack[from];
			block.stack_pointers[to] = stacks; /* any but NULL: the right one is noted when it waits */
			become(to);
			continue;
		}
		free_stacks[n_free_stacks++] = own_stack[from];
		if (to == block.n_threads)
			emulated_switch(&unused, caller);
		become(to);
		emulated_switch(&unused, block.stack_pointers[to]);
	}
}

/* ---- barriers ---- */

static void
open_barrier(void)
{
	for (unsigned i = 0; i * EMULATED_WARP < block.n_threads; i++)
	{
		block.warps[i].ready |= block.warps[i].blocked;
		block.warps[i].blocked = 0;
	}
	block.waiting = 0;
}

void
__syncthreads(int line)
{
	warp *w = &block.warps[block.thread / EMULATED_WARP];
	uint32_t bit = 1u << block.thread % EMULATED_WARP;

	if (block.waiting == 0)
		block.line = line;
	else if (block.line != line)
		emulated_die(WHERE "is at the barrier of line %d while others wait at that of line %d", WHERE_ARGS, line,
					 block.line);
	w->ready &= ~bit;
	w->blocked |= bit;
	if (++block.waiting == block.alive)
		open_barrier();
	else
		wait_for_others();
}

/* All lanes that are left have come. */
static void
end_meeting(warp *w)
{
	uint64_t *words = w->words[w->turn % 2];

	if (w->finish && w->met != ~0u)
		emulated_die(WHERE "%s of line %d with a part of the warp", WHERE_ARGS, operation_name(w->operation), w->line);
	for (uint32_t absent = ~w->met; absent; absent &= absent - 1)
		words[__builtin_ctz(absent)] = ~(uint64_t) 0;
	if (w->finish)
		w->finish(words);
	w->ready |= w->met;
	w->met = 0;
	w->turn++;
}

const uint64_t *
emulated_meet(emulated_operation operation, int line, uint64_t word, emulated_finish finish)
{
	warp *w = &block.warps[block.thread / EMULATED_WARP];
	unsigned lane = block.thread % EMULATED_WARP;
	uint64_t *words = w->words[w->turn % 2];

	if (!w->met)
	{
		w->operation = operation;
		w->line = line;
		w->finish = finish;
	}
	else if (w->operation != operation || w->line != line)
		emulated_die(WHERE "is in %s of line %d while other lanes wait in %s of line %d", WHERE_ARGS,
					 operation_name(operation), line, operation_name(w->operation), w->line);
	words[lane] = word;
	w->met |= 1u << lane;
	w->ready &= ~(1u << lane);
	if (w->met == w->alive)
		end_meeting(w);
	else
		wait_for_others();
	return words;
}

/* The running thread has ended: nobody waits for it any more. */
static void
leave(void)
{
	warp *w = &block.warps[block.thread / EMULATED_WARP];
	uint32_t bit = 1u << block.thread % EMULATED_WARP;

	w->alive &= ~bit;
	w->ready &= ~bit;
	block.alive--;
	if (w->met && w->met == w->alive)
		end_meeting(w);
	if (block.waiting > 0 && block.waiting == block.alive)
		open_barrier();
}

unsigned
emulated_lane(void)
{
	return block.thread % EMULATED_WARP;
}

void
emulated_check_mask(unsigned mask)
{
	die_if(mask != ~0u, "a mask that leaves lanes out");
}

unsigned
__ballot_sync(unsigned mask, int predicate, int line)
{
	const uint64_t *words;
	unsigned votes = 0;

	emulated_check_mask(mask);
	words = emulated_meet(EMULATED_BALLOT, line, predicate != 0);
	for (unsigned i = 0; i < EMULATED_WARP; i++)
		votes |= (unsigned) (words[i] == 1) << i;
	return votes;
}

/* ---- copies ---- */

void
copy_async_16(void *shared, const void *global, int valid)
{
	thread_copies *copies = &block.copies[block.thread];

	die_if(reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16,
		   "copy_async_16 of an address that is not a multiple of 16");
	die_if(valid < 0 || valid > 16, "copy_async_16 of a wrong number of bytes");
	memset(shared, 0xff, 16);
	copies->list.push_back({shared, global, valid, copies->groups});
}

void
copy_async_commit(void)
{
	block.copies[block.thread].groups++;
}

void
emulated_copy_wait(int pending)
{
	thread_copies *copies = &block.copies[block.thread];
	size_t done = 0;

	for (const late_copy &c : copies->list)
	{
		if (c.group >= copies->groups - pending)
			break;
		memset(c.dst, 0, 16);
		if (c.valid > 0)
			memcpy(c.dst, c.src, (size_t) c.valid);
		done++;
	}
	copies->list.erase(copies->list.begin(), copies->list.begin() + (ptrdiff_t) done);
}

/* ---- a kernel ---- */

void *
emulated_shared(void)
{
	return block.shared;
}

static void
number_threads(dim3 of)
{
	if (of.x == blockDim.x && of.y == blockDim.y && of.z == blockDim.z && block.n_threads > 0)
		return;
	blockDim = of;
	block.n_threads = of.x * of.y * of.z;
	for (unsigned i = 0; i < block.n_threads; i++)
		block.index[i] = {i % of.x, i / of.x % of.y, i / of.x / of.y};
}

static void
run_block(void)
{
	for (unsigned i = 0; i * EMULATED_WARP < block.n_threads; i++)
	{
		unsigned lanes = block.n_threads - i * EMULATED_WARP;
		warp *w = &block.warps[i];

		w->alive = w->ready = lanes < EMULATED_WARP ? (1u << lanes) - 1 : ~0u;
		w->met = w->blocked = 0;
	}
	for (unsigned i = 0; i < block.n_threads; i++)
	{
		block.stack_pointers[i] = nullptr;
		block.copies[i].list.clear();
		block.copies[i].groups = 0;
	}
	block.alive = block.n_threads;
	block.waiting = 0;
	memset(block.shared, 0xff, block.kernel->shared);
	block.thread = reversed ? block.n_threads - 1 : 0;
	become(choose());
	block.stack_pointers[block.thread] = new_stack(block.thread);
	emulated_switch(&caller, block.stack_pointers[block.thread]);
}

void
emulated_run(const emulated_kernel *kernel, const emulated_work &call)
{
	uint64_t n = (uint64_t) kernel->grid.x * kernel->grid.y * kernel->grid.z;

	if (!stacks)
		make_stacks();
	watch_for_faults();
	number_threads(kernel->block);
	gridDim = kernel->grid;
	block.kernel = kernel;
	block.call = &call;
	block.shared = shared_end() - (kernel->shared + 15) / 16 * 16;
	for (uint64_t i = 0; i < n; i++)
	{
		uint64_t at = reversed ? n - 1 - i : i;

		blockIdx = {(unsigned) (at % gridDim.x), (unsigned) (at / gridDim.x % gridDim.y),
					(unsigned) (at / gridDim.x / gridDim.y)};
		run_block();
	}
	block.kernel = nullptr;
}
