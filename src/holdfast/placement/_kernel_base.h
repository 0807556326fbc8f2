/* What the parts of the kernel share: objects, finders, and integers that came as a buffer or as a sequence. */

#ifndef HOLDFAST_KERNEL_BASE_H
#define HOLDFAST_KERNEL_BASE_H

#include <stdint.h>
#include <string.h>

#include "_kernel_hash.h"

#if defined(__GNUC__) || defined(__clang__)
#define PREFETCH(address) __builtin_prefetch(address)
#else
#define PREFETCH(address) ((void)(address))
#endif

/* What each interpreter has of its own. */
typedef struct {
    PyObject *key_bytes; /* hashing.key_bytes: the bytes of every other key, or Misuse */
    PyObject *misuse;
    PyObject *array; /* array.array */
    PyTypeObject *finder, *native, *ring, *walk, *table;
} Module;

/* Around what the GIL makes one step. */
#ifdef Py_GIL_DISABLED
#define LOCK(op) Py_BEGIN_CRITICAL_SECTION(op)
#define UNLOCK() Py_END_CRITICAL_SECTION()
#define HAS_GIL 0
#else
#define LOCK(op) {
#define UNLOCK() }
#define HAS_GIL 1
#endif

static PyObject *
new_object(PyTypeObject *type, Py_ssize_t items)
{
    return ((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, items);
}

/* The end of every tp_dealloc here: types are objects too, and each of their objects keeps its own alive. */
static void
free_object(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(op);
    Py_DECREF(type);
}

/* An algorithm's state, never changed: from the hash of a key to a slot. Where `find` is NULL it is one in Python. */
typedef struct Finder {
    PyObject_HEAD
    uint32_t (*find)(const struct Finder *self, uint64_t place);
    void (*find_many)(const struct Finder *self, const uint64_t *places, uint32_t *slots, size_t count);
} Finder;

/* find(place), for every finder in C */
static PyObject *
finder_find_method(PyObject *self, PyObject *given)
{
    const Finder *finder = (const Finder *)self;
    uint64_t place = PyLong_AsUnsignedLongLong(given);
    if (place == UINT64_MAX && PyErr_Occurred()) {
        return NULL;
    }
    return PyLong_FromUnsignedLong(finder->find(finder, place));
}

/* A memoryview of the first items of an array that is kept in a bytes object. */
static PyObject *
view_of(PyObject *bytes, const char *format, Py_ssize_t count)
{
    PyObject *plain = PyMemoryView_FromObject(bytes);
    PyObject *all = plain ? PyObject_CallMethod(plain, "cast", "s", format) : NULL;
    PyObject *view = all ? PySequence_GetSlice(all, 0, count) : NULL;
    Py_XDECREF(plain);
    Py_XDECREF(all);
    return view;
}

/* -- integers from outside: a buffer that is read in place, or a sequence of Python's that is copied */

typedef struct {
    const char *at; /* the first */
    Py_ssize_t count, step;
    int size, is_signed;
    Py_buffer view; /* where view.obj is set */
    uint64_t *copy; /* where it is not */
} Numbers;

static inline Integer
integer_at(const Numbers *numbers, Py_ssize_t index)
{
    const char *at = numbers->at + index * numbers->step; /* at any address: so each is copied */
    Integer number = {0, 0};
    uint8_t one;
    uint16_t two;
    uint32_t four;
    switch (numbers->size) {
    case 1:
        memcpy(&one, at, sizeof one);
        number.bits = numbers->is_signed ? (uint64_t)(int8_t)one : one;
        break;
    case 2:
        memcpy(&two, at, sizeof two);
        number.bits = numbers->is_signed ? (uint64_t)(int16_t)two : two;
        break;
    case 4:
        memcpy(&four, at, sizeof four);
        number.bits = numbers->is_signed ? (uint64_t)(int32_t)four : four;
        break;
    default:
        memcpy(&number.bits, at, sizeof number.bits);
    }
    number.negative = numbers->is_signed && number.bits >> 63;
    return number;
}

static void
drop_numbers(Numbers *numbers)
{
    PyMem_Free(numbers->copy);
    numbers->copy = NULL;
    PyBuffer_Release(&numbers->view); /* does nothing where there is none */
}

/* Whether this is a buffer with one dimension of integers in this machine's order of bytes: if so, it is taken. */
static int
take_buffer(PyObject *given, Numbers *numbers)
{
    if (!PyObject_CheckBuffer(given)) {
        return 0;
    }
    if (PyObject_GetBuffer(given, &numbers->view, PyBUF_RECORDS_RO) < 0) {
        PyErr_Clear(); /* then it is looked at as an iterable */
        return 0;
    }
    const Py_buffer *view = &numbers->view;
    const char *format = view->format ? view->format : "B";
    if (*format == '@' || *format == '=' || *format == (PY_BIG_ENDIAN ? '>' : '<')) {
        format++;
    }
    int size = (int)view->itemsize;
    if (view->ndim != 1 || !*format || !strchr("bBhHiIlLqQnN", *format) || format[1] ||
        (size != 1 && size != 2 && size != 4 && size != 8)) {
        PyBuffer_Release(&numbers->view);
        return 0;
    }
    numbers->at = view->buf;
    numbers->count = view->len / view->itemsize;
    numbers->step = view->strides ? view->strides[0] : view->itemsize; /* ctypes gives none, though we ask for them */
    numbers->size = size;
    numbers->is_signed = *format >= 'a';
    return 1;
}

/* Numbers from 0 to 2**64 - 1, from a buffer or from a sequence. */
static int
take_numbers(PyObject *given, Numbers *numbers)
{
    if (take_buffer(given, numbers)) {
        if (!numbers->is_signed) {
            return 0;
        }
        PyBuffer_Release(&numbers->view);
    }
    PyObject *items = PySequence_Tuple(given);
    if (items == NULL) {
        return -1;
    }
    numbers->count = PyTuple_Size(items);
    numbers->copy = PyMem_Malloc((size_t)numbers->count * sizeof *numbers->copy + 1);
    if (numbers->copy == NULL) {
        Py_DECREF(items);
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < numbers->count; i++) {
        numbers->copy[i] = PyLong_AsUnsignedLongLong(PyTuple_GetItem(items, i));
        if (numbers->copy[i] == UINT64_MAX && PyErr_Occurred()) {
            Py_DECREF(items);
            return -1;
        }
    }
    Py_DECREF(items);
    numbers->at = (const char *)numbers->copy;
    numbers->step = numbers->size = (int)sizeof *numbers->copy;
    return 0;
}

static inline uint64_t
number_at(const Numbers *numbers, Py_ssize_t index)
{
    return integer_at(numbers, index).bits;
}

#endif
