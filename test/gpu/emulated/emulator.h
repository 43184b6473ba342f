/*
 * emulator.h
 *	  What the files of the emulated CUDA do for each other.
 *
 * All of it happens under one lock, emulated_everything: the plug-in may be
 * called by several threads.
 */
#ifndef EMULATED_EMULATOR_H
#define EMULATED_EMULATOR_H

#include <functional>
#include <mutex>

#include "cuda_runtime.h"

/* A piece of a stream's work. */
typedef std::function<void(void)> emulated_work;

/* What is told of a kernel when it is started. */
typedef struct emulated_kernel
{
	const char *name;
	const void *address;
	dim3 grid;
	dim3 block;
	size_t shared; /* bytes of dynamic shared memory */
} emulated_kernel;

#define EMULATED_SMS 4
#define EMULATED_MAX_THREADS 1024
/* Of dynamic shared memory: what every kernel may have, and what a block has at most. */
#define EMULATED_SHARED ((size_t) 48 << 10)
#define EMULATED_MAX_SHARED ((size_t) 227 << 10)

extern std::recursive_mutex emulated_everything;
typedef std::lock_guard<std::recursive_mutex> emulated_lock;

/* ---- device.cpp ---- */

int emulated_devices(void);
size_t emulated_device_bytes(void);
/* The calling thread's. */
int emulated_device(void);
/* Keeps the error for cudaGetLastError, and gives it back; the error of a device that is dead instead. */
cudaError_t emulated_result(cudaError_t error);
/* From now on everything fails with this error. */
void emulated_kill(cudaError_t error);
/* Writes a line to stderr. */
void emulated_say(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The same, and ends the process. */
[[noreturn]] void emulated_die(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- block.cpp ---- */

/* Runs all blocks of a kernel; call runs it for one thread, the one that threadIdx names. */
void emulated_run(const emulated_kernel *kernel, const emulated_work &call);

/* ---- stream.cpp ---- */

/* Puts work at a stream's end, NULL: the device's default one, or into the graph that the stream records. */
cudaError_t emulated_queue(cudaStream_t stream, emulated_work work);
bool emulated_capturing(cudaStream_t stream);
/* Some calls may not be made while the calling thread records; they break the recording. */
bool emulated_forbidden_in_capture(void);
/* Does everything that is queued: on the stream, or on all streams of a device. */
void emulated_drain(cudaStream_t stream);
void emulated_drain_device(int device);

/* ---- memory.cpp ---- */

/* Ends the process if a device's allocation has been written beyond its ends. */
void emulated_check_guards(void);
/* Says in a few words where an address lies. */
void emulated_describe_address(const void *p, char *text, size_t size);

#endif
