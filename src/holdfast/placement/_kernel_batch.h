/* Many keys in one call: gathered with the GIL, hashed and looked up without it. */

#ifndef HOLDFAST_KERNEL_BATCH_H
#define HOLDFAST_KERNEL_BATCH_H

#include "_kernel_base.h"
#include "_kernel_hash.h"
#include "_kernel_table.h"

enum {
    BLOCK = 256,      /* keys that are looked up together */
    FEW = 1 << 10,    /* up to so many the GIL is kept: getting it back may take 5 ms */
    MANY = 1 << 20    /* of integers, after so many we look whether somebody pressed Ctrl-C */
};

typedef struct {
    uint32_t *slot;
    Py_ssize_t count, room;
} Slots;

static int
make_room(Slots *slots, Py_ssize_t more)
{
    Py_ssize_t room = slots->count + more;
    if (room > slots->room) {
        room = room < slots->room * 2 ? slots->room * 2 : room;
        uint32_t *slot = PyMem_Realloc(slots->slot, (size_t)room * sizeof *slot);
        if (slot == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        slots->slot = slot;
        slots->room = room;
    }
    return 0;
}

/* -- any keys with any finder: one at a time */

static int
add_one(const Table *table, PyObject *key, Slots *slots)
{
    uint64_t place;
    if (make_room(slots, 1) < 0 || place_of(table, key, &place) < 0 ||
        slot_of(table, place, &slots->slot[slots->count]) < 0) {
        return -1;
    }
    slots->count++;
    return 0;
}

static int
add_each(const Table *table, PyObject *keys, Slots *slots)
{
    PyObject *each = PyObject_GetIter(keys), *key;
    if (each == NULL) {
        return -1;
    }
    while ((key = PyIter_Next(each)) != NULL) {
        int failed = add_one(table, key, slots);
        Py_DECREF(key);
        if (failed) {
            break;
        }
    }
    Py_DECREF(each);
    return PyErr_Occurred() ? -1 : 0;
}

/* -- buffers of integers */

static int
add_integers(const Table *table, const Numbers *numbers, Slots *slots)
{
    uint64_t places[BLOCK];
    if (make_room(slots, numbers->count) < 0) {
        return -1;
    }
    while (slots->count < numbers->count) {
        Py_ssize_t left = numbers->count - slots->count, stop = slots->count + (left < MANY ? left : MANY);
        PyThreadState *without = left > FEW ? PyEval_SaveThread() : NULL;
        while (slots->count < stop) {
            Py_ssize_t count = stop - slots->count < BLOCK ? stop - slots->count : BLOCK;
            for (Py_ssize_t i = 0; i < count; i++) {
                places[i] = hash_integer(integer_at(numbers, slots->count + i));
            }
            table->native->find_many(table->native, places, slots->slot + slots->count, (size_t)count);
            slots->count += count;
        }
        if (without != NULL) {
            PyEval_RestoreThread(without);
        }
        if (PyErr_CheckSignals() < 0) {
            return -1;
        }
    }
    return 0;
}

static int
add_each_integer(const Table *table, const Numbers *numbers, Slots *slots)
{
    for (Py_ssize_t i = 0; i < numbers->count; i++) {
        Integer number = integer_at(numbers, i);
        PyObject *key = number.negative ? PyLong_FromLongLong((long long)number.bits)
                                        : PyLong_FromUnsignedLongLong(number.bits);
        int failed = key == NULL || add_one(table, key, slots) < 0;
        Py_XDECREF(key);
        if (failed) {
            return -1;
        }
    }
    return 0;
}

/* -- lists, tuples and other iterables, in chunks
 *
 * A chunk is gathered with the GIL and looked up without it. It is one string of records: a byte that says what follows, and
 *   0 to SHORT   a key of that many bytes: copied, so that it is read once where it lies (mostly far from the others), and
 *                so that nothing has to keep it alive;
 *   PLACE        the place of a key that was hashed at once, as it is an integer or what only Python knows;
 *   KEPT         a Kept: a long key, which stays where it is.
 */

enum {
    SHORT = 128,
    PLACE = 254,
    KEPT = 255,
    LONGEST_RECORD = 1 + SHORT,
    AHEAD_BY = 16,         /* how many keys before it is read a key is asked for */
    FIRST_ROOM = 1 << 15,  /* bytes: for small batches */
    LAST_ROOM = 1 << 22    /* for large ones: some ms with the GIL, as long as others have it when we let it go */
};

typedef struct {
    PyObject *key;
    const char *data;
    size_t size;
} Kept;

typedef struct {
    PyObject *keys;  /* a list or a tuple */
    PyObject *each;  /* else an iterator */
    Py_ssize_t next; /* a list may change while the GIL is not ours: no more than an iterator notices */
    unsigned char *records, *end;
    size_t room;
    Py_ssize_t count, kept;
} Batch;

/* Copy what begins at *at, and step over it. */
static inline void
take(const unsigned char **at, void *to, size_t size)
{
    memcpy(to, *at, size);
    *at += size;
}

static inline void
put(unsigned char **at, int what, const void *from, size_t size)
{
    *(*at)++ = (unsigned char)what;
    memcpy(*at, from, size);
    *at += size;
}

/* By words, the last over the end of the one before: for short texts quicker than memcpy, which must think of long ones. */
static inline void
put_text(unsigned char **at, const char *from, size_t size)
{
    unsigned char *to = *at + 1;
    **at = (unsigned char)size;
    *at = to + size;
    if (size >= 8) {
        for (size_t i = 0; i + 8 < size; i += 8) {
            memcpy(to + i, from + i, 8);
        }
        memcpy(to + size - 8, from + size - 8, 8);
        return;
    }
    for (size_t i = 0; i < size; i++) {
        to[i] = (unsigned char)from[i];
    }
}

static int
batch_begin(Batch *batch)
{
    if (batch->room < LAST_ROOM) {
        batch->room = batch->room ? batch->room * 8 : FIRST_ROOM;
        batch->room = batch->room < LAST_ROOM ? batch->room : LAST_ROOM;
        PyMem_Free(batch->records);
        batch->records = PyMem_Malloc(batch->room);
    }
    batch->end = batch->records;
    batch->count = batch->kept = 0;
    if (batch->records == NULL) {
        batch->room = 0;
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

static inline int
batch_is_full(const Batch *batch)
{
    return (size_t)(batch->end - batch->records) + LONGEST_RECORD > batch->room;
}

static inline void
batch_add_text(Batch *batch, PyObject *key, const char *data, Py_ssize_t size)
{
    if (size <= SHORT) {
        put_text(&batch->end, data, (size_t)size);
        return;
    }
    Kept kept = {Py_NewRef(key), data, (size_t)size};
    put(&batch->end, KEPT, &kept, sizeof kept);
    batch->kept++;
}

static inline int
batch_add(Batch *batch, const Table *table, PyObject *key)
{
    batch->count++;
    if (PyUnicode_CheckExact(key)) {
        Py_ssize_t size;
        const char *text = PyUnicode_AsUTF8AndSize(key, &size);
        if (text != NULL) {
            batch_add_text(batch, key, text, size);
            return 0;
        }
        PyErr_Clear();
    }
    else if (PyBytes_CheckExact(key)) {
        batch_add_text(batch, key, PyBytes_AsString(key), PyBytes_Size(key));
        return 0;
    }
    uint64_t place = 0;
    Py_INCREF(key); /* whatever Python does meanwhile */
    int failed = place_of(table, key, &place);
    Py_DECREF(key);
    put(&batch->end, PLACE, &place, sizeof place);
    return failed;
}

static int
batch_gather_each(Batch *batch, const Table *table)
{
    PyObject *key;
    while (!batch_is_full(batch) && (key = PyIter_Next(batch->each)) != NULL) {
        int failed = batch_add(batch, table, key);
        Py_DECREF(key);
        if (failed) {
            return -1;
        }
    }
    return PyErr_Occurred() ? -1 : 0;
}

static int
batch_gather(Batch *batch, const Table *table)
{
    if (batch->each != NULL) {
        return batch_gather_each(batch, table);
    }
    int is_list = PyList_CheckExact(batch->keys);
    while (!batch_is_full(batch)) {
        Py_ssize_t size = is_list ? PyList_Size(batch->keys) : PyTuple_Size(batch->keys), ahead = batch->next + AHEAD_BY;
        if (batch->next >= size) {
            break;
        }
        if (ahead < size) {
            const char *later = (const char *)(is_list ? PyList_GetItem(batch->keys, ahead) : PyTuple_GetItem(batch->keys, ahead));
            PREFETCH(later);
            PREFETCH(later + 64);
        }
        PyObject *key = is_list ? PyList_GetItem(batch->keys, batch->next) : PyTuple_GetItem(batch->keys, batch->next);
        batch->next++;
        if (batch_add(batch, table, key) < 0) {
            return -1;
        }
    }
    return 0;
}

static void
batch_find(const Batch *batch, const Finder *finder, uint32_t *slots)
{
    uint64_t places[BLOCK];
    const unsigned char *at = batch->records;
    for (Py_ssize_t left = batch->count; left > 0;) {
        size_t count = left < BLOCK ? (size_t)left : BLOCK;
        for (size_t i = 0; i < count; i++) {
            int what = *at++;
            Kept kept;
            switch (what) {
            case PLACE:
                take(&at, &places[i], sizeof places[i]);
                break;
            case KEPT:
                take(&at, &kept, sizeof kept);
                places[i] = xxh64(kept.data, kept.size, 0);
                break;
            default:
                places[i] = xxh64(at, (size_t)what, 0);
                at += what;
            }
        }
        finder->find_many(finder, places, slots, count);
        slots += count;
        left -= (Py_ssize_t)count;
    }
}

static void
batch_drop(const Batch *batch)
{
    const unsigned char *at = batch->records;
    for (Py_ssize_t left = batch->kept; left > 0;) {
        int what = *at++;
        Kept kept;
        if (what == KEPT) {
            take(&at, &kept, sizeof kept);
            Py_DECREF(kept.key);
            left--;
        }
        else {
            at += what == PLACE ? (int)sizeof(uint64_t) : what;
        }
    }
}

static int
add_batch(const Table *table, PyObject *keys, Slots *slots)
{
    Batch batch = {0};
    int failed, full;
    if (PyTuple_CheckExact(keys) || (HAS_GIL && PyList_CheckExact(keys))) {
        batch.keys = keys; /* without a GIL, only an iterator can tell how long a list still is */
    }
    else if ((batch.each = PyObject_GetIter(keys)) == NULL) {
        return -1;
    }
    do {
        failed = batch_begin(&batch) < 0 || batch_gather(&batch, table) < 0 || make_room(slots, batch.count) < 0;
        full = batch.count > 0 && batch_is_full(&batch);
        if (!failed) {
            PyThreadState *without = batch.count > FEW ? PyEval_SaveThread() : NULL;
            batch_find(&batch, table->native, slots->slot + slots->count);
            if (without != NULL) {
                PyEval_RestoreThread(without);
            }
            slots->count += batch.count;
            failed = PyErr_CheckSignals() < 0;
        }
        batch_drop(&batch);
    } while (full && !failed);
    PyMem_Free(batch.records);
    Py_XDECREF(batch.each);
    return failed ? -1 : 0;
}

static int
slots_of(const Table *table, PyObject *keys, Slots *slots)
{
    int native = table->native != NULL && table->hasher == Py_None;
    Numbers numbers = {0};
    if (take_buffer(keys, &numbers)) {
        int failed = native ? add_integers(table, &numbers, slots) : add_each_integer(table, &numbers, slots);
        drop_numbers(&numbers);
        return failed;
    }
    return native ? add_batch(table, keys, slots) : add_each(table, keys, slots);
}

#endif
