/*
 * serve.c
 *	  `qwen-engine serve`: the engine under the PostgreSQL worker.
 *
 * The worker starts this program with one end of a socket pair and lives on
 * the other end.  When that end is closed, or the worker dies, this process
 * ends: it never outlives its parent.  serve.h says how the threads share
 * their state.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "cli.h"
#include "serve.h"

static const char usage[] =
	"Serves requests of the PostgreSQL worker over an inherited socket (frames: engine/protocol.h).\n"
	"Not for use by hand.";

/* The kernel's out-of-memory killer shall choose this process, never the server's. */
static void
offer_to_oom_killer(void)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	if (write(fd, "1000", 4) != 4)
		fprintf(stderr, "qwen-engine: could not raise oom_score_adj\n");
	close(fd);
}

static bool
init_server(qwen_server *s, int sock)
{
	s->socket = sock;
	s->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->front_wake, NULL);
	pthread_cond_init(&s->compute_wake, NULL);
	return s->wake >= 0 && fcntl(sock, F_SETFL, fcntl(sock, F_GETFL) | O_NONBLOCK) == 0;
}

static void
free_server(qwen_server *s)
{
	const qwen_command *commands = (const qwen_command *) s->inbox.data;
	qwen_job *job;

	while ((job = qwen_job_queue_take(&s->jobs)) != NULL)
	{
		free(job->payload);
		free(job);
	}
	for (size_t i = 0; i < s->inbox.len / sizeof(qwen_command); i++)
		qwen_sequence_free(commands[i].seq);
	qwen_bytes_free(&s->inbox);
	qwen_bytes_free(&s->outbox);
	qwen_engine_close(s->engine);
	close(s->wake);
	close(s->socket);
}

/* Starts the two working threads with all signals blocked: signals are the main thread's. */
static bool
start_threads(qwen_server *s, pthread_t threads[2])
{
	sigset_t all, old;
	bool ok;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	ok = pthread_create(&threads[0], NULL, qwen_server_front, s) == 0;
	if (ok && pthread_create(&threads[1], NULL, qwen_server_compute, s) != 0)
	{
		pthread_mutex_lock(&s->lock);
		qwen_server_stop(s, true);
		pthread_mutex_unlock(&s->lock);
		pthread_join(threads[0], NULL);
		ok = false;
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return ok;
}

static int
serve(const qwen_model_options *model, int sock)
{
	qwen_server s = {.options = *model};
	pthread_t threads[2];

	if (!init_server(&s, sock) || !start_threads(&s, threads))
	{
		fprintf(stderr, "qwen-engine: could not start serving\n");
		return 1;
	}
	qwen_server_read_and_write(&s);
	pthread_join(threads[0], NULL);
	pthread_join(threads[1], NULL);
	free_server(&s);
	return s.failed ? 1 : 0;
}

int
qwen_cmd_serve(int argc, char **argv)
{
	const char *fd_text = NULL;
	int fd, rc;
	qwen_model_options model;
	const qwen_cli_option options[] = {
		{"fd", 0, "N", "number of the inherited socket", &fd_text, NULL},
		{NULL},
	};

	rc = qwen_cli_parse(argc, argv, usage, options, &model, true, NULL);
	if (rc >= 0)
		return rc;
	if (!model.path || !fd_text || !qwen_cli_int("fd", fd_text, 0, 1 << 20, &fd))
	{
		fprintf(stderr, "qwen-engine: serve needs -m and --fd\n");
		return 2;
	}
	offer_to_oom_killer();
	return serve(&model, fd);
}
