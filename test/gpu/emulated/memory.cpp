/*
 * memory.cpp
 *	  Memory of the emulated devices, pinned memory, copies.
 *
 * Device memory is poisoned, ends (up to the granularity of 256 bytes) where
 * memory that nobody may touch begins, and what lies between its ends and
 * the borders of its pages is checked for having been written to.  Freed
 * memory is gone.
 *
 * Copies are checked when they are asked for.  Their bytes are read late, as
 * all work is done late; but from pageable memory at once, as CUDA does it, and
 * copies to pageable memory block.
 */
#include "emulator.h"

#include <map>
#include <memory>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <vector>

#define PAGE ((size_t) 4096)
#define ALIGNMENT ((size_t) 256)
#define GUARD 0xa5
#define POISON 0xff

/* Device memory. Mapped are whole pages that end with it, and one more that is out of bounds. */
typedef struct region
{
	int device;
	size_t bytes;
	char *start;
	char *map;
	size_t map_bytes; /* without the last page */
} region;

static std::map<uintptr_t, region> regions; /* by start */
static std::map<uintptr_t, size_t> pinned;  /* bytes, by start */

static uintptr_t
address(const void *p)
{
	return reinterpret_cast<uintptr_t>(p);
}

static size_t
round_up(size_t n, size_t to)
{
	return (n + to - 1) / to * to;
}

/* ---- which memory an address lies in ---- */

/* The region that holds all of the bytes; NULL: none. */
static const region *
find_region(const void *p, size_t bytes)
{
	auto after = regions.upper_bound(address(p));
	const region *r;
	size_t offset;

	if (after == regions.begin())
		return nullptr;
	r = &std::prev(after)->second;
	offset = address(p) - address(r->start);
	return offset <= r->bytes && bytes <= r->bytes - offset ? r : nullptr;
}

/* Does any of the bytes lie in device memory? */
static bool
touches_device(const void *p, size_t bytes)
{
	auto after = regions.lower_bound(address(p) + bytes);
	const region *r;

	if (after == regions.begin())
		return false;
	r = &std::prev(after)->second;
	return address(p) < address(r->start) + r->bytes;
}

static bool
is_pinned(const void *p, size_t bytes)
{
	auto after = pinned.upper_bound(address(p));
	size_t offset;

	if (after == pinned.begin())
		return false;
	--after;
	offset = address(p) - after->first;
	return offset <= after->second && bytes <= after->second - offset;
}

void
emulated_describe_address(const void *p, char *text, size_t size)
{
	auto after = regions.upper_bound(address(p));
	const region *r = after == regions.begin() ? nullptr : &std::prev(after)->second;

	if (r && address(p) - address(r->start) < r->bytes + PAGE)
		snprintf(text, size, "byte %zu of %zu bytes of device %d", address(p) - address(r->start), r->bytes, r->device);
	else if (after != regions.end() && after->first - address(p) < PAGE)
		snprintf(text, size, "%zu before %zu bytes of device %d", after->first - address(p), after->second.bytes,
				 after->second.device);
	else
		snprintf(text, size, "far from device memory");
}

/* ---- allocation ---- */

static size_t
bytes_in_use(int device)
{
	size_t sum = 0;

	for (auto &entry : regions)
		if (entry.second.device == device)
			sum += round_up(entry.second.bytes, ALIGNMENT);
	return sum;
}

static void
check_span(const region &r, const char *from, const char *to, const char *what)
{
	for (const char *p = from; p < to; p++)
		if (*p != (char) GUARD)
			emulated_die("emulated CUDA: somebody wrote %s %zu bytes of device %d, %zu from their %s", what, r.bytes,
						 r.device,
						 p < r.start ? address(r.start) - address(p) : address(p) - address(r.start) - r.bytes,
						 p < r.start ? "start" : "end");
}

static void
check_guard(const region &r)
{
	const char *near = r.start - r.map < (ptrdiff_t) ALIGNMENT ? r.map : r.start - ALIGNMENT;

	check_span(r, near, r.start, "before");
	check_span(r, r.start + r.bytes, r.map + r.map_bytes, "beyond");
}

void
emulated_check_guards(void)
{
	for (auto &entry : regions)
		check_guard(entry.second);
}

cudaError_t
cudaMalloc(void **p, size_t bytes)
{
	emulated_lock lock(emulated_everything);
	region r = {emulated_device(), bytes, nullptr, nullptr, 0};
	size_t rounded, used = bytes_in_use(r.device);
	void *map;

	*p = nullptr;
	if (emulated_forbidden_in_capture())
		return emulated_result(cudaErrorStreamCaptureUnsupported);
	if (bytes == 0)
		return emulated_result(cudaSuccess);
	if (used > emulated_device_bytes() || bytes > emulated_device_bytes() - used)
		return emulated_result(cudaErrorMemoryAllocation);
	rounded = round_up(bytes, ALIGNMENT);
	r.map_bytes = round_up(rounded, PAGE);
	map = mmap(nullptr, r.map_bytes + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (map == MAP_FAILED)
		return emulated_result(cudaErrorMemoryAllocation);
	r.map = static_cast<char *>(map);
	r.start = r.map + r.map_bytes - rounded;
	memset(r.map, GUARD, r.map_bytes);
	memset(r.start, POISON, bytes);
	(void) mprotect(r.map + r.map_bytes, PAGE, PROT_NONE);
	regions[address(r.start)] = r;
	*p = r.start;
	return emulated_result(cudaSuccess);
}

cudaError_t
cudaFree(void *p)
{
	emulated_lock lock(emulated_everything);
	auto entry = regions.find(address(p));

	if (emulated_forbidden_in_capture())
		return emulated_result(cudaErrorStreamCaptureUnsupported);
	if (!p)
		return emulated_result(cudaSuccess);
	if (entry == regions.end())
		return emulated_result(cudaErrorInvalidValue);
	emulated_drain_device(entry->second.device);
	(void) munmap(entry->second.map, entry->second.map_bytes + PAGE);
	regions.erase(entry);
	return emulated_result(cudaSuccess);
}

cudaError_t
cudaMallocHost(void **p, size_t bytes)
{
	emulated_lock lock(emulated_everything);

	*p = nullptr;
	if (posix_memalign(p, PAGE, bytes ? bytes : 1) != 0)
		return emulated_result(cudaErrorMemoryAllocation);
	memset(*p, POISON, bytes);
	pinned[address(*p)] = bytes;
	return emulated_result(cudaSuccess);
}

/* CUDA waits for what may still use the memory. */
cudaError_t
cudaFreeHost(void *p)
{
	emulated_lock lock(emulated_everything);

	if (p && pinned.erase(address(p)) == 0)
		return emulated_result(cudaErrorInvalidValue);
	for (int i = 0; i < emulated_devices(); i++)
		emulated_drain_device(i);
	free(p);
	return emulated_result(cudaSuccess);
}

cudaError_t
cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
	emulated_lock lock(emulated_everything);
	size_t used = bytes_in_use(emulated_device());

	*total_bytes = emulated_device_bytes();
	*free_bytes = used < *total_bytes ? *total_bytes - used : 0;
	return emulated_result(cudaSuccess);
}

/* ---- copies ---- */

/* One side of a copy: all of it in device memory, or none of it. */
static bool
side_is_right(const void *p, size_t bytes, bool on_device, const char *what)
{
	bool right = on_device ? find_region(p, bytes) != nullptr : p && !touches_device(p, bytes);
	char text[160];

	if (right)
		return true;
	emulated_describe_address(p, text, sizeof(text));
	emulated_say("emulated CUDA: the %s of a copy of %zu bytes is not %s memory: %s", what, bytes,
				 on_device ? "device" : "host", text);
	return false;
}

static emulated_work
copy_later(void *dst, const void *src, size_t bytes)
{
	return [=] { memmove(dst, src, bytes); };
}

static emulated_work
copy_of_now(void *dst, const void *src, size_t bytes)
{
	const char *from = static_cast<const char *>(src);
	auto kept = std::make_shared<std::vector<char>>(from, from + bytes);

	return [=] { memcpy(dst, kept->data(), bytes); };
}

cudaError_t
cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream)
{
	emulated_lock lock(emulated_everything);
	bool recorded = emulated_capturing(stream);
	cudaError_t error;

	if (bytes == 0)
		return emulated_result(cudaSuccess);
	if (!side_is_right(dst, bytes, kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice, "target") ||
		!side_is_right(src, bytes, kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice, "source"))
		return emulated_result(cudaErrorInvalidValue);
	if (kind == cudaMemcpyHostToDevice && !recorded && !is_pinned(src, bytes))
		return emulated_result(emulated_queue(stream, copy_of_now(dst, src, bytes)));
	error = emulated_queue(stream, copy_later(dst, src, bytes));
	if (error == cudaSuccess && kind == cudaMemcpyDeviceToHost && !recorded && !is_pinned(dst, bytes))
		emulated_drain(stream);
	return emulated_result(error);
}

/* On the default stream, which waits for the others of the device. */
cudaError_t
cudaMemcpy(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind)
{
	emulated_lock lock(emulated_everything);
	cudaError_t error;

	if (emulated_forbidden_in_capture())
		return emulated_result(cudaErrorStreamCaptureUnsupported);
	emulated_drain_device(emulated_device());
	error = cudaMemcpyAsync(dst, src, bytes, kind, nullptr);
	emulated_drain(nullptr);
	return emulated_result(error);
}

cudaError_t
cudaMemcpyPeerAsync(void *dst, int dst_device, const void *src, int src_device, size_t bytes, cudaStream_t stream)
{
	emulated_lock lock(emulated_everything);
	const region *to = find_region(dst, bytes), *from = find_region(src, bytes);

	if (bytes == 0)
		return emulated_result(cudaSuccess);
	if (!side_is_right(dst, bytes, true, "target") || !side_is_right(src, bytes, true, "source"))
		return emulated_result(cudaErrorInvalidValue);
	if (to->device != dst_device || from->device != src_device)
	{
		emulated_say("emulated CUDA: a copy from device %d to %d has memory of devices %d and %d", src_device,
					 dst_device, from->device, to->device);
		return emulated_result(cudaErrorInvalidValue);
	}
	return emulated_result(emulated_queue(stream, copy_later(dst, src, bytes)));
}

cudaError_t
cudaMemset(void *dst, int value, size_t bytes)
{
	return cudaMemsetAsync(dst, value, bytes, nullptr);
}

cudaError_t
cudaMemsetAsync(void *dst, int value, size_t bytes, cudaStream_t stream)
{
	emulated_lock lock(emulated_everything);

	if (bytes == 0)
		return emulated_result(cudaSuccess);
	if (!side_is_right(dst, bytes, true, "target"))
		return emulated_result(cudaErrorInvalidValue);
	return emulated_result(emulated_queue(stream, [=] { memset(dst, value, bytes); }));
}
