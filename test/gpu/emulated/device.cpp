/*
 * device.cpp
 *	  The devices of the emulated CUDA and their errors.
 *
 * All devices are alike: sm_90 with four multiprocessors.  An error that kills
 * a device stays, as CUDA's do; here it takes all devices with it, as they
 * share the process.
 */
#include "emulator.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define MAX_DEVICES 64

std::recursive_mutex emulated_everything;

static thread_local int current_device;
static thread_local cudaError_t last_error;
static cudaError_t fatal_error;

/* ---- settings ---- */

static uint64_t
number_from_environment(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text && *text ? strtoull(text, nullptr, 10) : otherwise;
}

int
emulated_devices(void)
{
	uint64_t n = number_from_environment("QWEN_EMULATED_GPUS", 1);

	return (int) (n < MAX_DEVICES ? n : MAX_DEVICES);
}

size_t
emulated_device_bytes(void)
{
	return (size_t) number_from_environment("QWEN_EMULATED_GPU_BYTES", (uint64_t) 1 << 30);
}

static bool
driver_is_broken(void)
{
	return number_from_environment("QWEN_EMULATED_GPU_BROKEN", 0) != 0;
}

int
emulated_device(void)
{
	return current_device;
}

/* ---- errors ---- */

static void
say(const char *format, va_list args)
{
	char line[512];

	vsnprintf(line, sizeof(line), format, args);
	fprintf(stderr, "%s\n", line);
}

void
emulated_say(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	say(format, args);
	va_end(args);
}

void
emulated_die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	say(format, args);
	va_end(args);
	abort();
}

cudaError_t
emulated_result(cudaError_t error)
{
	if (fatal_error != cudaSuccess)
		error = fatal_error;
	if (error != cudaSuccess)
		last_error = error;
	return error;
}

void
emulated_kill(cudaError_t error)
{
	fatal_error = error;
}

cudaError_t
cudaGetLastError(void)
{
	emulated_lock lock(emulated_everything);
	cudaError_t error = fatal_error != cudaSuccess ? fatal_error : last_error;

	last_error = cudaSuccess;
	return error;
}

typedef struct error_text
{
	cudaError_t error;
	const char *name;
	const char *text;
} error_text;

#define ERROR(name, text)                                                                                              \
	{                                                                                                                  \
		name, #name, text                                                                                              \
	}

static const error_text *
find_text(cudaError_t error)
{
	static const error_text texts[] = {
		ERROR(cudaSuccess, "no error"),
		ERROR(cudaErrorInvalidValue, "invalid argument"),
		ERROR(cudaErrorMemoryAllocation, "out of memory"),
		ERROR(cudaErrorInvalidConfiguration, "invalid configuration argument"),
		ERROR(cudaErrorNoDevice, "no CUDA-capable device is detected"),
		ERROR(cudaErrorInvalidDevice, "invalid device ordinal"),
		ERROR(cudaErrorInvalidResourceHandle, "invalid resource handle"),
		ERROR(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
		ERROR(cudaErrorPeerAccessAlreadyEnabled, "peer access is already enabled"),
		ERROR(cudaErrorSystemDriverMismatch, "system has unsupported display driver / cuda driver combination"),
		ERROR(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing"),
		ERROR(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture"),
		ERROR(cudaErrorUnknown, "unknown error"),
	};

	for (const error_text &t : texts)
		if (t.error == error)
			return &t;
	return &texts[sizeof(texts) / sizeof(texts[0]) - 1];
}

const char *
cudaGetErrorString(cudaError_t error)
{
	return find_text(error)->text;
}

const char *
cudaGetErrorName(cudaError_t error)
{
	return find_text(error)->name;
}

/* ---- devices ---- */

/* A driver that does not work fails all calls that need one. */
static cudaError_t
check_device(int device)
{
	if (driver_is_broken())
		return emulated_result(cudaErrorSystemDriverMismatch);
	return emulated_result(device >= 0 && device < emulated_devices() ? cudaSuccess : cudaErrorInvalidDevice);
}

cudaError_t
cudaDriverGetVersion(int *version)
{
	*version = 13000;
	return cudaSuccess;
}

cudaError_t
cudaGetDeviceCount(int *count)
{
	*count = 0;
	if (driver_is_broken())
		return emulated_result(cudaErrorSystemDriverMismatch);
	if (emulated_devices() == 0)
		return emulated_result(cudaErrorNoDevice);
	*count = emulated_devices();
	return emulated_result(cudaSuccess);
}

cudaError_t
cudaGetDeviceProperties(cudaDeviceProp *properties, int device)
{
	cudaError_t error = check_device(device);

	if (error != cudaSuccess)
		return error;
	*properties = {};
	snprintf(properties->name, sizeof(properties->name), "Emulated GPU");
	properties->totalGlobalMem = emulated_device_bytes();
	properties->sharedMemPerBlockOptin = EMULATED_MAX_SHARED;
	properties->major = 9;
	properties->minor = 0;
	properties->multiProcessorCount = EMULATED_SMS;
	properties->warpSize = EMULATED_WARP;
	return cudaSuccess;
}

cudaError_t
cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device)
{
	cudaDeviceProp properties;
	cudaError_t error = cudaGetDeviceProperties(&properties, device);

	if (error != cudaSuccess)
		return error;
	if (attribute != cudaDevAttrMaxSharedMemoryPerBlockOptin)
		return emulated_result(cudaErrorInvalidValue);
	*value = (int) properties.sharedMemPerBlockOptin;
	return cudaSuccess;
}

cudaError_t
cudaSetDevice(int device)
{
	cudaError_t error = check_device(device);

	if (error == cudaSuccess)
		current_device = device;
	return error;
}

cudaError_t
cudaDeviceCanAccessPeer(int *can, int device, int peer)
{
	cudaError_t error = check_device(device);

	if (error == cudaSuccess)
		error = check_device(peer);
	*can = error == cudaSuccess && device != peer;
	return error;
}

/* Once for each pair and direction, as CUDA wants it. */
cudaError_t
cudaDeviceEnablePeerAccess(int peer, unsigned flags)
{
	static bool enabled[MAX_DEVICES][MAX_DEVICES];
	emulated_lock lock(emulated_everything);
	cudaError_t error = check_device(peer);

	if (error != cudaSuccess)
		return error;
	if (flags != 0 || peer == current_device)
		return emulated_result(flags != 0 ? cudaErrorInvalidValue : cudaErrorInvalidDevice);
	if (enabled[current_device][peer])
		return emulated_result(cudaErrorPeerAccessAlreadyEnabled);
	enabled[current_device][peer] = true;
	return cudaSuccess;
}
