/*
 * stream.cpp
 *	  Streams, events and graphs of the emulated CUDA.
 *
 * A stream is a queue, and nothing in it is done before somebody must wait
 * for it: at a synchronisation, at a copy that blocks, at cudaFree.  Waiting
 * for an event is a piece of work like others: when its turn comes, the
 * event's stream is worked off up to where the event was recorded.  So
 * whatever the plug-in forgets to wait for has not happened yet.
 *
 * A graph is a list of such work, and launching it queues the list.
 */
#include "emulated_math.h"

#include <algorithm>
#include <deque>
#include <map>
#include <thread>
#include <vector>

struct emulated_graph
{
	std::vector<emulated_work> work;
};

struct emulated_stream
{
	int device;
	std::deque<emulated_work> queue;
	uint64_t queued; /* pieces of work so far */
	uint64_t done;
	emulated_graph *capture; /* that is recorded; NULL: none */
	bool broken;             /* the recording, by a call that may not be recorded */
	std::thread::id capturer;
};

/* Refers to the work of a stream before it; to nothing before it is recorded, and when the stream has ended. */
struct emulated_event
{
	cudaStream_t stream;
	uint64_t queued;
};

static std::vector<cudaStream_t> streams;
static std::vector<cudaEvent_t> events;
static std::map<int, cudaStream_t> default_streams;
static std::map<const void *, size_t> shared_limits; /* of kernels that may have more than usual */

/* ---- queues ---- */

static cudaStream_t
new_stream(int device)
{
	streams.push_back(new emulated_stream{device, {}, 0, 0, nullptr, false, {}});
	return streams.back();
}

static cudaStream_t
stream_or_default(cudaStream_t stream)
{
	cudaStream_t &of_device = default_streams[emulated_device()];

	if (stream)
		return stream;
	if (!of_device)
		of_device = new_stream(emulated_device());
	return of_device;
}

static void
work_off(cudaStream_t stream, uint64_t until)
{
	while (stream->done < until)
	{
		emulated_work work = std::move(stream->queue.front());

		stream->queue.pop_front();
		/* what is left of a dead device's work is left out */
		if (emulated_result(cudaSuccess) == cudaSuccess)
			work();
		stream->done++;
	}
}

void
emulated_drain(cudaStream_t stream)
{
	stream = stream_or_default(stream);
	work_off(stream, stream->queued);
	emulated_check_guards();
}

void
emulated_drain_device(int device)
{
	for (size_t i = 0; i < streams.size(); i++)
		if (streams[i]->device == device)
			work_off(streams[i], streams[i]->queued);
	emulated_check_guards();
}

cudaError_t
emulated_queue(cudaStream_t stream, emulated_work work)
{
	stream = stream_or_default(stream);
	if (stream->device != emulated_device())
		return cudaErrorInvalidResourceHandle;
	if (stream->broken)
		return cudaErrorStreamCaptureInvalidated;
	if (stream->capture)
		stream->capture->work.push_back(std::move(work));
	else
	{
		stream->queue.push_back(std::move(work));
		stream->queued++;
	}
	return cudaSuccess;
}

bool
emulated_capturing(cudaStream_t stream)
{
	return stream_or_default(stream)->capture != nullptr;
}

bool
emulated_forbidden_in_capture(void)
{
	bool recording = false;

	for (cudaStream_t s : streams)
		if (s->capture && s->capturer == std::this_thread::get_id())
			s->broken = recording = true;
	return recording;
}

/* ---- kernels ---- */

/* Is this the kernel after which the device is to be dead? */
static bool
is_fatal(void)
{
	const char *setting = getenv("QWEN_EMULATED_GPU_FAULT");
	static unsigned long long n;

	return setting && ++n == strtoull(setting, nullptr, 10);
}

static cudaError_t
check_launch(const emulated_kernel &k)
{
	size_t limit = EMULATED_SHARED;

	if (shared_limits.count(k.address))
		limit = shared_limits[k.address];
	if (k.grid.x < 1 || k.grid.y < 1 || k.grid.z < 1 || k.block.x < 1 || k.block.y < 1 || k.block.z < 1)
		return cudaErrorInvalidConfiguration;
	if (k.grid.x > 0x7fffffffu || k.grid.y > 65535 || k.grid.z > 65535 || k.block.x > EMULATED_MAX_THREADS ||
		k.block.y > EMULATED_MAX_THREADS || k.block.z > 64)
		return cudaErrorInvalidConfiguration;
	if ((uint64_t) k.block.x * k.block.y * k.block.z > EMULATED_MAX_THREADS)
		return cudaErrorInvalidConfiguration;
	return k.shared > limit ? cudaErrorInvalidValue : cudaSuccess;
}

void
emulated_start(const emulated_kernel &kernel, cudaStream_t stream, emulated_work call)
{
	emulated_lock lock(emulated_everything);
	cudaError_t error = check_launch(kernel);

	if (error == cudaSuccess)
		error = emulated_queue(stream,
							   [kernel, call]
							   {
								   if (is_fatal())
									   emulated_kill(cudaErrorIllegalAddress);
								   else
									   emulated_run(&kernel, call);
							   });
	(void) emulated_result(error);
}

cudaError_t
cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int value)
{
	emulated_lock lock(emulated_everything);

	if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 || (size_t) value > EMULATED_MAX_SHARED)
		return emulated_result(cudaErrorInvalidValue);
	shared_limits[kernel] = (size_t) value;
	return emulated_result(cudaSuccess);
}

/* ---- streams ---- */

cudaError_t
cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
	emulated_lock lock(emulated_everything);

	if (flags != cudaStreamNonBlocking)
		return emulated_result(cudaErrorInvalidValue);
	*stream = new_stream(emulated_device());
	return emulated_result(cudaSuccess);
}

cudaError_t
cudaStreamDestroy(cudaStream_t stream)
{
	emulated_lock lock(emulated_everything);

	if (std::find(streams.begin(), streams.end(), stream) == streams.end())
		return emulated_result(cudaErrorInvalidResourceHandle);
	emulated_drain(stream);
	for (cudaEvent_t e : events)
		if (e->stream == stream)
			e->stream = nullptr;
	streams.erase(std::find(streams.begin(), streams.end(), stream));
	delete stream;
	return emulated_result(cudaSuccess);
}

cudaError_t
cudaStreamSynchronize(cudaStream_t stream)
{
	emulated_lock lock(emulated_everything);

	stream = stream_or_default(stream);
	if (stream->capture)
	{
		stream->broken = true;
		return emulated_result(cudaErrorStreamCaptureUnsupported);
	}
	emulated_drain(stream);
	return emulated_result(cudaSuccess);
}

cudaError_t
cudaDeviceSynchronize(void)
{
	emulated_lock lock(emulated_everything);

	if (emulated_forbidden_in_capture())
		return emulated_result(cudaErrorStreamCaptureUnsupported);
	emulated_drain_device(emulated_device());
	return emulated_result(cudaSuccess);
}

/* ---- events ---- */

cudaError_t
cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags)
{
	emulated_lock lock(emulated_everything);

	if (flags != cudaEventDisableTiming)
		return emulated_result(cudaErrorInvalidValue);
	events.push_back(new emulated_event{nullptr, 0});
	*event = events.back();
	return emulated_result(cudaSuccess);
}

cudaError_t
cudaEventDestroy(cudaEvent_t event)
{
	emulated_lock lock(emulated_everything);

	if (std::find(events.begin(), events.end(), event) == events.end())
		return emulated_result(cudaErrorInvalidResourceHandle);
	events.erase(std::find(events.begin(), events.end(), event));
	delete event;
	return emulated_result(cudaSuccess);
}

/* Streams that record fork and join by events on a GPU; the plug-in has no use for it. */
static bool
breaks_capture(cudaStream_t stream)
{
	if (stream->capture)
		stream->broken = true;
	return stream->capture != nullptr;
}

cudaError_t
cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
	emulated_lock lock(emulated_everything);

	stream = stream_or_default(stream);
	if (breaks_capture(stream))
		return emulated_result(cudaErrorStreamCaptureUnsupported);
	if (stream->device != emulated_device())
		return emulated_result(cudaErrorInvalidResourceHandle);
	*event = {stream, stream->queued};
	return emulated_result(cudaSuccess);
}

cudaError_t
cudaEventSynchronize(cudaEvent_t event)
{
	emulated_lock lock(emulated_everything);

	if (emulated_forbidden_in_capture())
		return emulated_result(cudaErrorStreamCaptureUnsupported);
	if (event->stream)
		work_off(event->stream, event->queued);
	return emulated_result(cudaSuccess);
}

/* A stream that has ended in the meantime has done all its work. */
static void
wait_for(const emulated_event &event)
{
	if (std::find(streams.begin(), streams.end(), event.stream) != streams.end())
		work_off(event.stream, event.queued);
}

cudaError_t
cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
	emulated_lock lock(emulated_everything);
	emulated_event as_recorded = *event;

	stream = stream_or_default(stream);
	if (flags != 0)
		return emulated_result(cudaErrorInvalidValue);
	if (breaks_capture(stream))
		return emulated_result(cudaErrorStreamCaptureUnsupported);
	/* unlike other work this may be asked of a stream of any device */
	stream->queue.push_back([as_recorded] { wait_for(as_recorded); });
	stream->queued++;
	return emulated_result(cudaSuccess);
}

/* ---- graphs ---- */

cudaError_t
cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode)
{
	emulated_lock lock(emulated_everything);

	(void) mode;
	if (!stream || stream->capture)
		return emulated_result(stream ? cudaErrorInvalidValue : cudaErrorStreamCaptureUnsupported);
	stream->capture = new emulated_graph;
	stream->broken = false;
	stream->capturer = std::this_thread::get_id();
	return emulated_result(cudaSuccess);
}

cudaError_t
cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
	emulated_lock lock(emulated_everything);
	bool broken = stream->broken;

	*graph = nullptr;
	if (!stream->capture)
		return emulated_result(cudaErrorInvalidValue);
	if (broken)
		delete stream->capture;
	else
		*graph = stream->capture;
	stream->capture = nullptr;
	stream->broken = false;
	return emulated_result(broken ? cudaErrorStreamCaptureInvalidated : cudaSuccess);
}

cudaError_t
cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags)
{
	emulated_lock lock(emulated_everything);

	if (flags != 0)
		return emulated_result(cudaErrorInvalidValue);
	*exec = new emulated_graph(*graph);
	return emulated_result(cudaSuccess);
}

cudaError_t
cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
	emulated_lock lock(emulated_everything);
	cudaError_t error = cudaSuccess;

	if (breaks_capture(stream_or_default(stream)))
		return emulated_result(cudaErrorStreamCaptureUnsupported);
	for (size_t i = 0; i < exec->work.size() && error == cudaSuccess; i++)
		error = emulated_queue(stream, exec->work[i]);
	return emulated_result(error);
}

cudaError_t
cudaGraphExecDestroy(cudaGraphExec_t exec)
{
	return cudaGraphDestroy(exec);
}

cudaError_t
cudaGraphDestroy(cudaGraph_t graph)
{
	emulated_lock lock(emulated_everything);

	delete graph;
	return emulated_result(cudaSuccess);
}
