/* Maglev's table, filled turn by turn: what `maglev._fill` does, for large tables. */

#ifndef HOLDFAST_KERNEL_FILL_H
#define HOLDFAST_KERNEL_FILL_H

#include <float.h>

#include "_kernel_finders.h"

typedef struct {
    uint32_t *at, *steps, *slots, count; /* where each node looks next, how far it goes on, and its slot */
    double *shares, *due, largest;       /* of the turns; NULL where all are equal */
} Nodes;

/* Whether every place got a slot: with numbers that were made up, a node may go round and find none. */
static int
fill_table(const Nodes *nodes, uint32_t *entries, uint32_t size)
{
    memset(entries, 0xFF, (size_t)size * sizeof *entries); /* UINT32_MAX: free */
    for (uint32_t filled = 0, number = 1;; number++) {
        for (uint32_t i = 0; i < nodes->count; i++) {
            if (nodes->shares != NULL) {
                if (number * nodes->shares[i] < nodes->due[i]) {
                    continue;
                }
                nodes->due[i] += nodes->largest;
            }
            uint32_t place = nodes->at[i], tried = 0;
            while (entries[place] != UINT32_MAX) {
                if (tried++ == size) {
                    return 0;
                }
                place += nodes->steps[i];
                place -= place >= size ? size : 0;
            }
            entries[place] = nodes->slots[i];
            nodes->at[i] = place;
            if (++filled == size) {
                return 1;
            }
        }
    }
}

/* The shares as doubles, none of them odd. */
static int
take_shares(Nodes *nodes, PyObject *given)
{
    PyObject *shares = PySequence_Tuple(given);
    if (shares == NULL || PyTuple_Size(shares) != nodes->count) {
        Py_XDECREF(shares);
        PyErr_SetString(PyExc_ValueError, "as many shares as nodes");
        return -1;
    }
    nodes->shares = PyMem_Calloc(nodes->count, sizeof *nodes->shares);
    nodes->due = PyMem_Calloc(nodes->count, sizeof *nodes->due);
    for (uint32_t i = 0; nodes->shares && nodes->due && i < nodes->count; i++) {
        double share = nodes->shares[i] = PyFloat_AsDouble(PyTuple_GetItem(shares, i));
        nodes->largest = share > nodes->largest ? share : nodes->largest;
        if (!(share >= 0 && share <= 1) && !PyErr_Occurred()) {
            PyErr_SetString(PyExc_ValueError, "a share is from 0 to 1");
        }
    }
    Py_DECREF(shares);
    if (nodes->shares == NULL || nodes->due == NULL) {
        PyErr_NoMemory();
    }
    if (!PyErr_Occurred() && nodes->largest <= 0) {
        PyErr_SetString(PyExc_ValueError, "some share is above 0");
    }
    return PyErr_Occurred() ? -1 : 0;
}

/* fill(size, at, steps, slots, shares or None): the table as an array, or None where floating point is not IEEE's */
static PyObject *
kernel_fill(PyObject *self, PyObject *args)
{
    unsigned int size;
    PyObject *at, *steps, *slots, *shares, *bytes = NULL, *array = NULL;
    if (!PyArg_ParseTuple(args, "IOOOO:fill", &size, &at, &steps, &slots, &shares)) {
        return NULL;
    }
    if (FLT_EVAL_METHOD != 0) {
        Py_RETURN_NONE;
    }
    if (size < 2 || size > INT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "a table has from 2 to 2**31 - 1 places");
        return NULL;
    }
    Nodes nodes = {0};
    nodes.at = narrow_copy(at, &nodes.count, size);
    nodes.steps = nodes.at ? narrow_copy(steps, &nodes.count, size) : NULL;
    nodes.slots = nodes.steps ? narrow_copy(slots, &nodes.count, UINT32_MAX) : NULL;
    if (nodes.slots != NULL && (shares == Py_None || take_shares(&nodes, shares) == 0)) {
        bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size * (Py_ssize_t)sizeof(uint32_t));
    }
    if (bytes != NULL) {
        uint32_t *entries = (uint32_t *)PyBytes_AsString(bytes);
        int filled;
        Py_BEGIN_ALLOW_THREADS
        filled = fill_table(&nodes, entries, size);
        Py_END_ALLOW_THREADS
        if (filled) {
            array = PyObject_CallFunction(((Module *)PyModule_GetState(self))->array, "sO", "I", bytes);
        }
        else {
            PyErr_SetString(PyExc_ValueError, "a node's steps do not lead to every place");
        }
        Py_DECREF(bytes);
    }
    PyMem_Free(nodes.at);
    PyMem_Free(nodes.steps);
    PyMem_Free(nodes.slots);
    PyMem_Free(nodes.shares);
    PyMem_Free(nodes.due);
    return array;
}

#endif
