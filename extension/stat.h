/*-------------------------------------------------------------------------
 *
 * stat.h
 *	  Cumulative counters of requests, one set a role.
 *
 * A fixed array in the main shared memory segment: QWEN_STAT_ROLES sets that
 * roles take as they make their first request, and one more for all roles
 * that come after.  Nothing is allocated later, so counting cannot fail.
 *
 * Protocol.  One lock, "the statistics lock", guards the whole struct.
 *
 *	1. A backend that submits a request remembers the role that it does it
 *	   for (client.c).  Nothing is counted yet.
 *	2. When the request ends for that backend it takes the lock exclusively,
 *	   finds the role's set, or takes a free one, and adds all that there is
 *	   to add in one go.  A request ends once: with its last record (DONE or
 *	   ERROR), with an error before it was ever queued, or by being let go of
 *	   before its end, which counts as cancelled.
 *	3. A reader copies all sets under the lock, shared.  So what it sees is a
 *	   state between two requests: in each set the requests are as many as
 *	   answers and errors together.
 *	4. A reset empties the array and gives all sets back, under the lock.
 *
 * The lock is the last one that is taken; nothing is done under it but
 * adding and copying.
 *
 * The counters live as long as the shared memory: they begin at zero when the
 * server starts, and after a crash of it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef QWEN_STAT_H
#define QWEN_STAT_H

#include "qwen.h"

#include "storage/lwlock.h"

/* Roles that are told from each other; all later ones share one set. */
#define QWEN_STAT_ROLES 256

/* Causes of errors, by the class of the SQLSTATE. */
typedef enum QwenStatCause
{
	QWEN_STAT_INVALID,   /* 22 */
	QWEN_STAT_TOO_LONG,  /* 54 */
	QWEN_STAT_RESOURCES, /* 53 */
	QWEN_STAT_NOT_READY, /* 55 */
	QWEN_STAT_CANCELLED, /* 57, and what was let go of */
	QWEN_STAT_ENGINE,    /* 58 */
	QWEN_STAT_OTHER,
	QWEN_STAT_CAUSES
} QwenStatCause;

/* What the requests of a role add up to.  Tokens and times: of requests to the model that were answered. */
typedef struct QwenCounters
{
	Oid userid; /* InvalidOid: a free set, or that of all other roles */
	int64 requests;
	int64 errors[QWEN_STAT_CAUSES];
	int64 prompt_tokens;
	int64 cached_tokens;
	int64 output_tokens;
	int64 steps;          /* forward passes, summed over requests */
	int64 batched_tokens; /* tokens of all sequences in those passes */
	int64 queue_us;
	int64 run_us;
	int64 first_us; /* from arrival to the first token */
	int64 answers;  /* requests that have a part in the sums above */
} QwenCounters;

typedef struct QwenStats
{
	TimestampTz reset_at;
	QwenCounters roles[QWEN_STAT_ROLES + 1]; /* the last one: all other roles */
} QwenStats;

/* For shared.c: the memory, and the lock that guards it. */
extern Size qwen_stat_size(void);
extern void qwen_stat_attach(void *place, LWLock *lock);
extern void qwen_stat_start(void); /* once, in the memory that was just made */

/* A request of a role has ended: with an answer, or with an error of that SQLSTATE (ERRCODE_...). */
extern void qwen_stat_count_answer(Oid userid, uint32 kind, const qwen_done *done);
extern void qwen_stat_count_error(Oid userid, int sqlstate);

#endif /* QWEN_STAT_H */
