"""Sparse-training methods, one file each, and their registry."""

from distsparse.methods.acdc import acdc
from distsparse.methods.dense import dense
from distsparse.methods.dsr import dsr
from distsparse.methods.gmp import gmp
from distsparse.methods.granet import granet
from distsparse.methods.grasp import grasp
from distsparse.methods.imp import imp
from distsparse.methods.lottery import lottery
from distsparse.methods.mest import mest
from distsparse.methods.progressive import progressive
from distsparse.methods.registry import method, methods, names
from distsparse.methods.rigl import rigl
from distsparse.methods.rigl_structured import rigl_structured
from distsparse.methods.set import set_
from distsparse.methods.snfs import snfs
from distsparse.methods.snip import snip
from distsparse.methods.srigl import srigl
from distsparse.methods.static import static
from distsparse.methods.synflow import synflow

__all__ = [
    "acdc",
    "dense",
    "dsr",
    "gmp",
    "granet",
    "grasp",
    "imp",
    "lottery",
    "mest",
    "method",
    "methods",
    "names",
    "progressive",
    "rigl",
    "rigl_structured",
    "set_",
    "snfs",
    "snip",
    "srigl",
    "static",
    "synflow",
]
