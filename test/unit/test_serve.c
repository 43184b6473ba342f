/*
 * test_serve.c
 *	  `qwen-engine serve` over a real socket, in a process of its own: the test
 *	  plays the worker.
 */
#include "unit.h"

#include <errno.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/cli.h"
#include "engine/protocol.h"
#include "engine/serve_queue.h"

#define MODEL "test/data/demo-model"

static int sock;
static pid_t child;

/* The last frame that came. */
static qwen_frame head;
static char payload[QWEN_DATA_MAX + sizeof(qwen_engine_state)];

static void
start_engine(const char *model)
{
	int fds[2];
	char fd_text[16];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
	child = fork();
	if (child == 0)
	{
		char *argv[] = {"serve", "-m", (char *) model, "--fd", fd_text, "--max-sequences", "8", NULL};

		close(fds[0]);
		snprintf(fd_text, sizeof(fd_text), "%d", fds[1]);
		if (!freopen("/dev/null", "w", stderr))
			_exit(3);
		_exit(qwen_cmd_serve(7, argv));
	}
	close(fds[1]);
	sock = fds[0];
}

/* The exit status; a hang here is ended by the alarm in main. */
static int
wait_for_end(void)
{
	int status;

	while (waitpid(child, &status, 0) < 0)
		assert_int_equal(errno, EINTR);
	close(sock);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static bool
read_fully(void *to, size_t n)
{
	for (size_t got = 0; got < n;)
	{
		ssize_t k = read(sock, (char *) to + got, n - got);

		if (k <= 0)
			return false;
		got += (size_t) k;
	}
	return true;
}

/* The last that the engine has said of its devices. */
static qwen_devices devices;

static void
note_devices(void)
{
	assert_true(head.length >= offsetof(qwen_devices, devices) && head.length <= sizeof(devices));
	memcpy(&devices, payload, head.length);
	assert_int_equal(head.length,
					 offsetof(qwen_devices, devices) + (size_t) devices.n_devices * sizeof(devices.devices[0]));
}

/* The next frame that is no heartbeat, no progress and not about devices; false at the end of the connection. */
static bool
next_frame(void)
{
	do
	{
		if (!read_fully(&head, sizeof(head)))
			return false;
		assert_true(head.length <= sizeof(payload));
		if (!read_fully(payload, head.length))
			return false;
		if (head.type == QWEN_FRAME_DEVICES)
			note_devices();
	} while (head.type == QWEN_FRAME_HEARTBEAT || head.type == QWEN_FRAME_PROGRESS || head.type == QWEN_FRAME_DEVICES);
	return true;
}

/* Reads states until the engine is ready or has failed. */
static qwen_engine_state
wait_for_model(void)
{
	qwen_engine_state state;

	do
	{
		assert_true(next_frame());
		assert_int_equal(head.type, QWEN_FRAME_STATE);
		assert_int_equal(head.length, sizeof(state));
		memcpy(&state, payload, sizeof(state));
		assert_int_equal(state.protocol, QWEN_PROTOCOL);
	} while (state.phase == QWEN_ENGINE_STARTING || state.phase == QWEN_ENGINE_LOADING);
	return state;
}

static void
send_frame(uint32_t type, uint64_t id, const void *data, uint32_t len)
{
	qwen_frame frame = {type, len, id};

	assert_int_equal(send(sock, &frame, sizeof(frame), MSG_NOSIGNAL), sizeof(frame));
	if (len)
		assert_int_equal(send(sock, data, len, MSG_NOSIGNAL), len);
}

/* Writes a request at bytes, which has room for it; returns its end. */
static char *
put_prompt(char *bytes, const char *prompt, size_t len, int32_t max_tokens, uint32_t flags)
{
	qwen_request_header h = {.protocol = QWEN_PROTOCOL,
							 .kind = QWEN_KIND_GENERATE,
							 .flags = flags,
							 .n_fields = 1,
							 .max_tokens = max_tokens,
							 .top_k = QWEN_UNSET_INT,
							 .top_p = QWEN_UNSET_FLOAT,
							 .min_p = QWEN_UNSET_FLOAT,
							 .presence_penalty = QWEN_UNSET_FLOAT,
							 .frequency_penalty = QWEN_UNSET_FLOAT,
							 .repetition_penalty = QWEN_UNSET_FLOAT};

	memcpy(bytes, &h, sizeof(h));
	return qwen_field_put(bytes + sizeof(h), QWEN_FIELD_PROMPT, prompt, (uint32_t) len);
}

static void
send_prompt(uint64_t id, const char *prompt, int32_t max_tokens, uint32_t flags)
{
	char bytes[2048];
	char *end = put_prompt(bytes, prompt, strlen(prompt), max_tokens, flags);

	send_frame(QWEN_FRAME_REQUEST, id, bytes, (uint32_t) (end - bytes));
}

/* Of a model that is loaded, on one processor. */
static void
check_devices(int n_layers)
{
	const qwen_device_state *d = &devices.devices[0];

	assert_int_equal(devices.n_devices, 1);
	assert_int_equal(devices.n_layers, n_layers);
	assert_string_equal(d->name, "cpu");
	assert_string_equal(d->kind, "cpu");
	assert_int_equal(d->n_layers, n_layers);
	assert_true(d->weights_bytes > 0 && d->loaded_bytes == d->weights_bytes);
	assert_true(d->kv_bytes == d->layer_kv_bytes * (uint64_t) n_layers);
	assert_true(d->weights_bytes == d->embed_bytes + d->head_bytes + d->layer_bytes * (uint64_t) n_layers);
	assert_true(d->used_bytes >= d->loaded_bytes + d->kv_bytes && d->used_bytes <= d->planned_bytes);
	assert_true(d->planned_bytes <= d->budget_bytes && d->peak_bytes == d->used_bytes && d->free_bytes > 0);
}

static void
a_request_is_answered(void **state)
{
	qwen_engine_state model;
	qwen_done done;

	start_engine(MODEL);
	send_prompt(5, "What is the capital of Kenya?", 40, 0); /* before the model is loaded: it waits */
	model = wait_for_model();
	assert_int_equal(model.phase, QWEN_ENGINE_READY);
	assert_string_equal(model.architecture, "qwen3");
	assert_int_equal(model.context, 2048);
	assert_int_equal(model.loaded_bytes, model.total_bytes);
	check_devices(4);
	assert_true(model.parameters > 4000000 && model.parameters < 5000000);

	assert_true(next_frame());
	assert_int_equal(head.type, QWEN_FRAME_DATA);
	assert_int_equal(head.id, 5);
	assert_int_equal(head.length, strlen("The capital of Kenya is Nairobi."));
	assert_memory_equal(payload, "The capital of Kenya is Nairobi.", head.length);
	assert_true(next_frame());
	assert_int_equal(head.type, QWEN_FRAME_DONE);
	memcpy(&done, payload, sizeof(done));
	assert_int_equal(done.finish_reason, QWEN_FINISH_STOP);
	assert_true(done.prompt_tokens > 5 && done.output_tokens > 3);
	close(sock);
	assert_int_equal(wait_for_end(), 0);
}

static void
a_bad_request_fails_alone(void **state)
{
	qwen_wire_error error;

	start_engine(MODEL);
	assert_int_equal(wait_for_model().phase, QWEN_ENGINE_READY);
	send_frame(QWEN_FRAME_REQUEST, 6, "rubbish", 7);
	assert_true(next_frame());
	assert_int_equal(head.type, QWEN_FRAME_ERROR);
	assert_int_equal(head.id, 6);
	memcpy(&error, payload, sizeof(error));
	assert_string_equal(error.sqlstate, "22023");
	send_prompt(7, "What is 17 + 25?", 40, 0);
	assert_true(next_frame());
	assert_int_equal(head.type, QWEN_FRAME_DATA);
	assert_int_equal(head.id, 7);
	close(sock);
	assert_int_equal(wait_for_end(), 0);
}

static void
a_cancelled_request_is_silent(void **state)
{
	start_engine(MODEL);
	assert_int_equal(wait_for_model().phase, QWEN_ENGINE_READY);
	for (uint64_t id = 1; id <= 30; id++)
		send_prompt(id, "Describe these countries: France, Japan.", 2000, QWEN_FLAG_IGNORE_EOS);
	for (uint64_t id = 1; id <= 30; id++)
		send_frame(QWEN_FRAME_CANCEL, id, NULL, 0);
	send_frame(QWEN_FRAME_CANCEL, 999, NULL, 0);
	send_prompt(31, "What is 17 + 25?", 40, 0);
	assert_true(next_frame());
	assert_int_equal(head.id, 31);
	close(sock);
	assert_int_equal(wait_for_end(), 0);
}

static void
shutdown_finishes_what_runs(void **state)
{
	int done = 0;

	start_engine(MODEL);
	for (uint64_t id = 1; id <= 20; id++)
		send_prompt(id, "Describe these countries: France, Japan.", 60, 0);
	send_frame(QWEN_FRAME_SHUTDOWN, 0, NULL, 0);
	assert_int_equal(wait_for_model().phase, QWEN_ENGINE_READY);
	while (next_frame())
		done += head.type == QWEN_FRAME_DONE;
	assert_int_equal(done, 20);
	assert_int_equal(wait_for_end(), 0);
}

static void
an_unread_stream_stops_at_the_window(void **state)
{
	size_t unread = 0, records = 0;
	uint64_t consumed;

	start_engine(MODEL);
	assert_int_equal(wait_for_model().phase, QWEN_ENGINE_READY);
	send_prompt(1, "Describe these countries: France, Japan.", 1900, QWEN_FLAG_IGNORE_EOS | QWEN_FLAG_STREAM);
	/* The other request's answer comes although the stream's reader does not read. */
	while (records + sizeof(qwen_record) + QWEN_DATA_MAX <= QWEN_WINDOW || unread == 0)
	{
		if (!next_frame() || head.type != QWEN_FRAME_DATA)
			break;
		unread += head.length;
		records += head.length + sizeof(qwen_record);
		assert_true(records <= QWEN_WINDOW);
	}
	send_prompt(2, "What is 17 + 25?", 40, 0);
	do
		assert_true(next_frame());
	while (head.id == 1 && (records += head.length + sizeof(qwen_record)) <= QWEN_WINDOW);
	assert_int_equal(head.id, 2);
	consumed = records;
	send_frame(QWEN_FRAME_CREDIT, 1, &consumed, sizeof(consumed));
	do
		assert_true(next_frame());
	while (head.id == 2);
	assert_int_equal(head.id, 1);
	close(sock);
	assert_int_equal(wait_for_end(), 0);
}

/* A request, a long one that is refused, and another one: in pieces that end anywhere, and all in one. */
static void
frames_arrive_in_any_pieces(void **state)
{
	enum
	{
		LONG = 200000
	};
	char *bytes = malloc(LONG + 4096), *text = calloc(1, LONG), *end = bytes;

	memset(text, 'x', LONG);
	for (uint64_t id = 1; id <= 3; id++)
	{
		qwen_frame frame = {QWEN_FRAME_REQUEST, 0, id};
		char *start = end;

		end = put_prompt(start + sizeof(frame), id == 2 ? text : "2 + 3 =", id == 2 ? LONG : 7, 4, 0);
		frame.length = (uint32_t) (end - start - (ptrdiff_t) sizeof(frame));
		memcpy(start, &frame, sizeof(frame));
	}
	start_engine(MODEL);
	assert_int_equal(wait_for_model().phase, QWEN_ENGINE_READY);
	for (int round = 0; round < 2; round++)
	{
		int done = 0, failed = 0;
		size_t at = 0, total = (size_t) (end - bytes);

		for (size_t n = 1; at < total; at += n, n = round ? total : n % 97 + 1)
		{
			n = n < total - at ? n : total - at;
			for (size_t sent = 0; sent < n;)
			{
				ssize_t k = send(sock, bytes + at + sent, n - sent, MSG_NOSIGNAL);

				assert_true(k > 0);
				sent += (size_t) k;
			}
		}
		while (done + failed < 3)
		{
			assert_true(next_frame());
			done += head.type == QWEN_FRAME_DONE && head.id != 2;
			failed += head.type == QWEN_FRAME_ERROR && head.id == 2;
		}
		assert_int_equal(done, 2);
	}
	close(sock);
	assert_int_equal(wait_for_end(), 0);
	free(bytes);
	free(text);
}

static void
add_job(qwen_job_queue *queue, qwen_job *job, uint64_t id, int32_t session, int32_t priority)
{
	qwen_request_header h = {.session = session, .priority = priority};

	*job = (qwen_job){.id = id, .payload = malloc(sizeof(h)), .length = sizeof(h)};
	memcpy(job->payload, &h, sizeof(h));
	qwen_job_queue_add(queue, job);
	free(job->payload);
}

/* One session sends five requests before two others send one each: those do not wait for the five. */
static void
sessions_take_turns_at_the_front(void **state)
{
	static const uint64_t order[] = {1, 2, 20, 30, 3, 21, 5};
	qwen_job_queue queue = {0};
	qwen_job jobs[10];

	assert_null(qwen_job_queue_take(&queue));
	for (uint64_t id = 1; id <= 5; id++)
		add_job(&queue, &jobs[id], id, 1, 0);
	assert_int_equal(qwen_job_queue_take(&queue)->id, order[0]);
	assert_int_equal(qwen_job_queue_take(&queue)->id, order[1]);
	add_job(&queue, &jobs[6], 20, 2, 0);
	add_job(&queue, &jobs[7], 21, 2, 0);
	add_job(&queue, &jobs[8], 30, 3, 0);
	assert_null(qwen_job_queue_remove(&queue, 1));
	assert_ptr_equal(qwen_job_queue_remove(&queue, 4), &jobs[4]);
	for (size_t i = 2; i < sizeof(order) / sizeof(order[0]); i++)
		assert_int_equal(qwen_job_queue_take(&queue)->id, order[i]);
	assert_null(queue.first);
	assert_null(queue.last);
}

static void
priorities_come_first_at_the_front(void **state)
{
	qwen_job_queue queue = {0};
	qwen_job jobs[4];

	add_job(&queue, &jobs[0], 1, 1, -1);
	add_job(&queue, &jobs[1], 2, 2, 0);
	add_job(&queue, &jobs[2], 3, 2, 1);
	jobs[3] = (qwen_job){.id = 4, .length = 1}; /* too short: normal */
	qwen_job_queue_add(&queue, &jobs[3]);
	assert_int_equal(qwen_job_queue_take(&queue)->id, 3);
	assert_int_equal(qwen_job_queue_take(&queue)->id, 2);
	assert_int_equal(qwen_job_queue_take(&queue)->id, 4);
	assert_int_equal(qwen_job_queue_take(&queue)->id, 1);
}

static void
nonsense_ends_the_connection(void **state)
{
	start_engine(MODEL);
	assert_int_equal(wait_for_model().phase, QWEN_ENGINE_READY);
	send_frame(12345, 1, NULL, 0);
	assert_false(next_frame());
	wait_for_end();
	start_engine(MODEL);
	assert_int_equal(wait_for_model().phase, QWEN_ENGINE_READY);
	{
		qwen_frame frame = {QWEN_FRAME_REQUEST, UINT32_MAX, 1};

		assert_int_equal(send(sock, &frame, sizeof(frame), MSG_NOSIGNAL), sizeof(frame));
	}
	assert_false(next_frame());
	wait_for_end();
}

static void
a_refused_model_says_why(void **state)
{
	qwen_engine_state model;

	start_engine("test/data/no-such-model");
	model = wait_for_model();
	assert_int_equal(model.phase, QWEN_ENGINE_FAILED);
	assert_true(model.error.message[0] && model.error.sqlstate[0]);
	assert_false(next_frame());
	assert_int_equal(wait_for_end(), 1);
}

static void
the_heart_beats(void **state)
{
	start_engine(MODEL);
	for (int beats = 0; beats < 2;)
	{
		assert_true(read_fully(&head, sizeof(head)) && read_fully(payload, head.length));
		beats += head.type == QWEN_FRAME_HEARTBEAT;
	}
	close(sock);
	assert_int_equal(wait_for_end(), 0);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_request_is_answered),
		cmocka_unit_test(a_bad_request_fails_alone),
		cmocka_unit_test(a_cancelled_request_is_silent),
		cmocka_unit_test(shutdown_finishes_what_runs),
		cmocka_unit_test(an_unread_stream_stops_at_the_window),
		cmocka_unit_test(frames_arrive_in_any_pieces),
		cmocka_unit_test(sessions_take_turns_at_the_front),
		cmocka_unit_test(priorities_come_first_at_the_front),
		cmocka_unit_test(nonsense_ends_the_connection),
		cmocka_unit_test(a_refused_model_says_why),
		cmocka_unit_test(the_heart_beats),
	};

	alarm(300); /* a hang is a failure */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
