/*
 * protocol.h
 *	  What the worker and the engine say to each other, and what a request
 *	  and a reply look like in shared memory.
 *
 * The only header that both sides include.  It needs nothing but the C
 * library, and everything in it is a plain struct or a static inline function,
 * so that qwen.so links no engine code.
 *
 * A socket carries frames: a qwen_frame, then `length` bytes.  Both ends run
 * on one machine and come from one build (QWEN_PROTOCOL guards that), so
 * integers travel in the machine's own order; sizes are checked all the same.
 *
 *	worker -> engine
 *		REQUEST		id		a request (below)
 *		CANCEL		id		forget it; no more frames for this id will be read
 *		CREDIT		id		uint64: bytes of DATA records (qwen_record + payload) consumed since REQUEST
 *		SHUTDOWN	0		finish what runs, then exit 0
 *
 *	engine -> worker
 *		STATE		0		qwen_engine_state: sent first, on progress, on every change
 *		HEARTBEAT	0		qwen_heartbeat, once a second, from the thread that reads the socket
 *		DEVICES		0		qwen_devices up to its last device: while loading, then with each heartbeat
 *		PROGRESS	id		qwen_progress: when its prompt is known, when it starts, then with each heartbeat
 *		DATA		id		a piece of the answer, 1 .. QWEN_DATA_MAX bytes
 *		DONE		id		qwen_done: the answer is complete
 *		ERROR		id		qwen_wire_error: the request failed; nothing follows
 *
 * Flow control.  Per request at most QWEN_WINDOW bytes of DATA records may be
 * unread (sent by the engine, not yet credited).  A streaming sequence whose
 * window is full is not scheduled until a CREDIT comes; the socket itself is
 * therefore always drained by the worker and one slow reader stops nobody.
 *
 * A request that is sent again after an engine's death carries in `skip` the
 * number of DATA payload bytes that the backend has read already; records
 * that it has not read are dropped by the worker, and both sides count the
 * window from zero again.  The new engine makes the same answer (greedy, or
 * seeded: the backend always sends a seed) and leaves out that many bytes.
 */
#ifndef QWEN_PROTOCOL_H
#define QWEN_PROTOCOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define QWEN_VERSION "0.1.0" /* the release, as in qwen.control */

#define QWEN_PROTOCOL 3 /* raised with every change of this file's structs */

#define QWEN_FRAME_MAX (1u << 30) /* longest payload of a frame */
#define QWEN_DATA_MAX 1024        /* longest payload of a DATA frame */
#define QWEN_WINDOW 8192          /* unread reply bytes per request, record headers included */

typedef enum qwen_frame_type
{
	QWEN_FRAME_REQUEST = 1,
	QWEN_FRAME_CANCEL,
	QWEN_FRAME_CREDIT,
	QWEN_FRAME_SHUTDOWN,

	QWEN_FRAME_STATE = 64,
	QWEN_FRAME_HEARTBEAT,
	QWEN_FRAME_PROGRESS,
	QWEN_FRAME_DATA,
	QWEN_FRAME_DONE,
	QWEN_FRAME_ERROR,
	QWEN_FRAME_DEVICES
} qwen_frame_type;

typedef struct qwen_frame
{
	uint32_t type;
	uint32_t length; /* bytes that follow */
	uint64_t id;     /* request, 0 for frames about the engine */
} qwen_frame;

/* ---- requests ---- */

typedef enum qwen_request_kind
{
	QWEN_KIND_GENERATE = 1, /* PROMPT (+ SYSTEM), chat template applied; DATA: the answer's text, thinking removed */
	QWEN_KIND_COMPLETE,     /* PROMPT as raw text; DATA: the continuation */
	QWEN_KIND_CHAT,         /* MESSAGES (+ TOOLS); DATA: the assistant message as one JSON text */
	QWEN_KIND_TOKENIZE,     /* PROMPT; DATA: int32 ids */
	QWEN_KIND_COUNT,        /* PROMPT; no DATA, the number is qwen_done.prompt_tokens */
	QWEN_KIND_DETOKENIZE    /* IDS; DATA: text */
} qwen_request_kind;

enum
{
	QWEN_FLAG_STREAM = 1,   /* DATA as it is decoded, else when the answer is complete */
	QWEN_FLAG_THINKING = 2, /* enable_thinking of the template */
	QWEN_FLAG_IGNORE_EOS = 4,
	QWEN_FLAG_CONTROL_TOKENS = 8, /* control tokens inside texts are recognised */
	QWEN_FLAG_TRUNCATE = 16,      /* a prompt longer than the context is cut, not refused */
	QWEN_FLAG_NO_CACHE = 32,      /* neither read nor fill the prefix cache */
	QWEN_FLAG_MAX_TOKENS = 64     /* max_tokens was asked for: refused where it has no room, else cut to what is left */
};

typedef enum qwen_field_tag
{
	QWEN_FIELD_PROMPT = 1, /* UTF-8 */
	QWEN_FIELD_SYSTEM,     /* UTF-8 */
	QWEN_FIELD_MESSAGES,   /* JSON array */
	QWEN_FIELD_TOOLS,      /* JSON array */
	QWEN_FIELD_STOP,       /* UTF-8, one field a string */
	QWEN_FIELD_IDS         /* int32[] */
} qwen_field_tag;

/* Not given: the model's generation_config, then the built-in default, decides. */
#define QWEN_UNSET_INT INT32_MIN
#define QWEN_UNSET_FLOAT ((float) __builtin_nan(""))
static inline bool
qwen_is_unset(float x)
{
	return x != x;
} /* NaN */

/* A request: this header, then n_fields fields, each {uint32 tag, uint32 length} and its bytes. */
typedef struct qwen_request_header
{
	uint32_t protocol; /* QWEN_PROTOCOL */
	uint32_t kind;     /* qwen_request_kind */
	uint32_t flags;
	uint32_t n_fields;
	uint64_t seed;      /* used when temperature > 0 */
	uint64_t skip;      /* DATA bytes delivered in an earlier life */
	int32_t max_tokens; /* >= 1 */
	int32_t top_k;      /* 0 = all */
	float temperature;  /* 0 = greedy */
	float top_p;
	float min_p;
	float presence_penalty;
	float frequency_penalty;
	float repetition_penalty;
	int32_t priority; /* -1 batch, 0 normal, 1 interactive */
	int32_t session;  /* requests of one session share its turn; the backend's pid */
} qwen_request_header;

typedef struct qwen_field
{
	uint32_t tag;
	uint32_t length;
	const char *data;
} qwen_field;

/* Bytes that a field of `length` bytes takes. */
static inline size_t
qwen_field_size(size_t length)
{
	return 2 * sizeof(uint32_t) + length;
}

/* Writes a field at p, which has room for qwen_field_size(length) bytes; returns the end. */
static inline char *
qwen_field_put(char *p, uint32_t tag, const void *data, uint32_t length)
{
	memcpy(p, &tag, sizeof(tag));
	memcpy(p + sizeof(tag), &length, sizeof(length));
	p += 2 * sizeof(uint32_t);
	if (length)
		memcpy(p, data, length);
	return p + length;
}

/* Reads the field at *p, which must lie before end, and moves *p behind it. False: malformed. */
static inline bool
qwen_field_next(const char **p, const char *end, qwen_field *field)
{
	size_t left = (size_t) (end - *p);

	if (left < 2 * sizeof(uint32_t))
		return false;
	memcpy(&field->tag, *p, sizeof(uint32_t));
	memcpy(&field->length, *p + sizeof(uint32_t), sizeof(uint32_t));
	if (field->length > left - 2 * sizeof(uint32_t))
		return false;
	field->data = *p + 2 * sizeof(uint32_t);
	*p = field->data + field->length;
	return true;
}

/* ---- replies ---- */

typedef enum qwen_finish_reason
{
	QWEN_FINISH_STOP = 1, /* a stop token or string */
	QWEN_FINISH_LENGTH    /* max_tokens, or the end of the context */
} qwen_finish_reason;

static inline const char *
qwen_finish_name(uint32_t reason)
{
	return reason == QWEN_FINISH_STOP ? "stop" : "length";
}

typedef struct qwen_done
{
	uint32_t finish_reason;
	int32_t prompt_tokens;
	int32_t cached_tokens;
	int32_t output_tokens;
	int32_t steps;           /* forward passes that it took part in */
	uint64_t batched_tokens; /* tokens of all sequences that these computed */
	uint64_t queue_us;       /* from arrival to the first step */
	uint64_t first_us;       /* from the first step to the first token of the answer */
	uint64_t run_us;         /* from the first step to the end */
} qwen_done;

typedef struct qwen_progress
{
	int32_t prompt_tokens;
	int32_t output_tokens;
	int32_t running; /* 0: it waits for its turn */
} qwen_progress;

/* An error as SQL raises it; all strings NUL-terminated, detail and hint may be empty. */
typedef struct qwen_wire_error
{
	char sqlstate[8];
	char message[256];
	char detail[768];
	char hint[256];
} qwen_wire_error;

/* A reply record in the slot: DATA, DONE or ERROR with its payload, as it came in the frame. */
typedef struct qwen_record
{
	uint32_t type; /* qwen_frame_type */
	uint32_t length;
} qwen_record;

/* Room that the worker needs for the records of a full window and the last record. */
#define QWEN_REPLY_BYTES (QWEN_WINDOW + sizeof(qwen_record) + sizeof(qwen_wire_error))

/* ---- the engine about itself ---- */

typedef enum qwen_engine_phase
{
	QWEN_ENGINE_STARTING = 1, /* exec'd, nothing read yet */
	QWEN_ENGINE_LOADING,
	QWEN_ENGINE_READY,
	QWEN_ENGINE_FAILED /* refused the model; `error` says why; the engine exits 1 after this */
} qwen_engine_phase;

typedef struct qwen_engine_state
{
	uint32_t protocol;
	uint32_t phase; /* qwen_engine_phase */
	uint64_t loaded_bytes;
	uint64_t total_bytes;
	uint64_t parameters;
	int32_t context; /* tokens of one sequence */
	int32_t max_sequences;
	int64_t kv_tokens;     /* tokens that the KV cache holds in all */
	char architecture[32]; /* "qwen3" */
	char dtype[16];
	char quantization[16];
	char kv_dtype[16];
	char kernels[16];
	char device[32];
	qwen_wire_error error;
} qwen_engine_state;

typedef struct qwen_heartbeat
{
	uint64_t steps; /* forward passes so far */
	int32_t running;
	int32_t waiting;
	int32_t kv_blocks_used;
	int32_t kv_blocks;
	uint64_t batched_tokens; /* computed in all steps */
	uint64_t cached_tokens;  /* taken from the prefix cache instead */
	uint64_t preemptions;    /* sequences that had to give their cache back and start again */
} qwen_heartbeat;

/* ---- its devices ---- */

#define QWEN_MAX_WIRE_DEVICES 64
#define QWEN_MAX_WIRE_LAYERS 1024

/* One device of the plan. Bytes that are planned do not change; those at the end do. */
typedef struct qwen_device_state
{
	char name[16]; /* "cpu:1" */
	char kind[8];  /* "cpu", "cuda" */
	int32_t stage; /* whose layers it has, perhaps with others; -1: not used */
	int32_t n_layers;
	uint64_t total_bytes;
	uint64_t budget_bytes;  /* of them, what the plan might use */
	uint64_t planned_bytes; /* everything, with overhead and margin */
	uint64_t weights_bytes;
	uint64_t kv_bytes;
	uint64_t workspace_bytes;
	uint64_t embed_bytes; /* of the weights: embedding, head with the last norm, a layer */
	uint64_t head_bytes;
	uint64_t layer_bytes;
	uint64_t layer_kv_bytes;

	uint64_t loaded_bytes; /* of the weights */
	uint64_t used_bytes;   /* allocated buffers, and the weights so far */
	uint64_t peak_bytes;   /* the most that used_bytes has been */
	uint64_t free_bytes;
} qwen_device_state;

/* What goes where. The frame ends behind devices[n_devices - 1]. */
typedef struct qwen_devices
{
	int32_t n_devices; /* 0: not known yet */
	int32_t n_layers;
	int32_t embed_stage;
	int32_t head_stage;
	uint8_t layer_stage[QWEN_MAX_WIRE_LAYERS];
	qwen_device_state devices[QWEN_MAX_WIRE_DEVICES];
} qwen_devices;

#endif
