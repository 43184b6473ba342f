/*
 * admission.h
 *	  Who of the waiting sequences starts, who of the running ones has to
 *	  stop, and which blocks of the cache they share.  The scheduler's.
 */
#ifndef QWEN_ADMISSION_H
#define QWEN_ADMISSION_H

#include "scheduler.h"

void qwen_list_push(qwen_sequence_list *list, qwen_sequence *seq);
void qwen_list_push_front(qwen_sequence_list *list, qwen_sequence *seq);
qwen_sequence *qwen_list_pop(qwen_sequence_list *list);
void qwen_list_unlink(qwen_sequence_list *list, const qwen_sequence *seq);

/* Puts a sequence behind the others of its session; false when memory is short. */
bool qwen_admission_enqueue(qwen_scheduler *s, qwen_sequence *seq);

/* Starts waiting sequences while there is room. */
void qwen_admission_start(qwen_scheduler *s);

/* Takes a sequence off the running ones and gives its blocks back. */
void qwen_admission_stop(qwen_scheduler *s, qwen_sequence *seq);

/*
 * The running sequence that has to give way when memory is short: one whose reader is
 * behind, else of the lowest priority, and of these the one that started last.
 */
int32_t qwen_admission_victim(const qwen_scheduler *s);

/* Sends a running sequence back to the head of its session's waiting ones. */
void qwen_admission_preempt(qwen_scheduler *s, qwen_sequence *seq);

/* Makes the full blocks that the sequence has computed available to others. */
void qwen_admission_publish(qwen_scheduler *s, qwen_sequence *seq);

#endif
