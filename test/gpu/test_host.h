/*
 * test_host.h
 *	  What the tests of the plug-in's host side share: devices on the emulated
 *	  GPUs, and what the plug-in has written to the log.
 *
 * These tests are linked with the plug-in's own objects, so that they reach
 * what it does not export.
 */
#ifndef QWEN_TEST_HOST_H
#define QWEN_TEST_HOST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern "C"
{
#include <cmocka.h>
}

#include <vector>

#include "kernels/cuda/cuda_device.h"

/* A device with its scratch memory. */
static inline qwen_device *
open_device(int index, const char *name, const qwen_needs *needs, qwen_dtype act = QWEN_F32)
{
	char err[256] = "";
	qwen_device *dev = qwen_cuda_open(index, name, act, err, sizeof(err));

	if (dev == NULL)
		fail_msg("%s", err);
	dev->needs = *needs;
	dev->scratch = dev->ops->alloc(dev, dev->ops->scratch_bytes(dev, needs));
	assert_non_null(dev->scratch);
	return dev;
}

static inline void
close_device(qwen_device *dev)
{
	dev->ops->free(dev, dev->scratch, dev->ops->scratch_bytes(dev, &dev->needs));
	dev->ops->close(dev);
}

/* n elements of device memory. */
template <typename T>
static inline std::vector<T>
fetch(qwen_device *dev, const T *d_src, size_t n)
{
	std::vector<T> out(n);

	assert_true(dev->ops->download(dev, out.data(), d_src, n * sizeof(T)));
	return out;
}

/* Device memory with these elements. */
template <typename T>
static inline T *
send(qwen_device *dev, const std::vector<T> &data)
{
	T *p = (T *) dev->ops->alloc(dev, data.size() * sizeof(T));

	assert_non_null(p);
	assert_true(dev->ops->upload(dev, p, data.data(), data.size() * sizeof(T)));
	return p;
}

/* ---- the log: what comes to stderr from listen() to heard() ---- */

static FILE *log_file;
static int log_saved;

static inline void
listen_to_log(void)
{
	log_file = tmpfile();
	assert_non_null(log_file);
	fflush(stderr);
	log_saved = dup(STDERR_FILENO);
	assert_int_equal(dup2(fileno(log_file), STDERR_FILENO), STDERR_FILENO);
}

/* The text since, valid until the next call. */
static inline const char *
heard_in_log(void)
{
	static char text[4096];
	size_t n;

	fflush(stderr);
	dup2(log_saved, STDERR_FILENO);
	close(log_saved);
	rewind(log_file);
	n = fread(text, 1, sizeof(text) - 1, log_file);
	text[n] = '\0';
	fclose(log_file);
	return text;
}

#endif
