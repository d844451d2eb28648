"""The saved state in the module's directory: two files, of which the document is the one that makes it valid."""

from __future__ import annotations

import os
import posixpath
import shlex
from dataclasses import dataclass

from hotpair.hyperv.errors import VmFailed
from hotpair.hyperv.files_io import flush_directory, flush_file, read_document, remove_durably, write_document
from hotpair.hyperv.qemu_saved import DiskState, Saved, from_document, refusal, to_document

STATE = "saved-state"
PART = "saved-state.part"  # complete as far as its writer knows
WRITING = "saved-state.writing"
DOCUMENT = "saved-state.json"
REFUSED = "saved-state.refused"  # the last one that could not be read, for whoever wants to know why


@dataclass(frozen=True)
class Fit:
    """What a state must fit. `description`: a digest. `files`: the disks, below the module's directory."""

    description: str
    accelerator: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class SavedState:
    """The saved state of one module."""

    directory: str
    module: str

    @property
    def state(self) -> str:
        return posixpath.join(self.directory, STATE)

    @property
    def part(self) -> str:
        return posixpath.join(self.directory, PART)

    @property
    def _document(self) -> str:
        return posixpath.join(self.directory, DOCUMENT)

    @property
    def writer(self) -> str:
        """The migration address to which QEMU writes. A program, because QEMU before 8.2 knows no files.

        QEMU does not wait for its result: only what was written without an error gets the name of the whole. The
        last, empty command keeps the shell from becoming mv: a process in the middle of that has no environment, and
        would not be found by its mark.
        """
        writing = shlex.quote(posixpath.join(self.directory, WRITING))
        return f"exec:cat > {writing} && mv {writing} {shlex.quote(self.part)}; :"

    @property
    def reader(self) -> str:
        """The migration address from which QEMU reads."""
        return f"exec:cat {shlex.quote(self.state)}"

    def flush(self) -> None:
        """What was written is on disk, and all of it. Raises OSError."""
        flush_file(self.part)

    def commit(self, fit: Fit) -> None:
        """What was flushed is complete, and no process has a disk open: make it valid. Raises VmFailed."""
        try:
            os.replace(self.part, self.state)
            flush_directory(self.directory)
            saved = self._found(fit)
            write_document(self._document, to_document(saved))
        except OSError as error:
            raise VmFailed(f"the saved state could not be kept: {error.strerror} ({error.filename})") from error

    def judge(self, fit: Fit) -> tuple[bool, str]:
        """Whether there is one that may be used; if there is one that may not, why."""
        try:
            document = read_document(self._document)
        except VmFailed as error:
            return False, str(error)
        if document is None:
            return False, ""
        saved = from_document(document)
        if saved is None:
            return False, "its document is of another version"
        try:
            problem = refusal(saved, self._found(fit))
        except OSError as error:
            return False, f"{error.filename}: {error.strerror}"
        return problem is None, problem or ""

    def invalidate(self) -> None:
        """Before a guest runs: from now on the state is never used, whatever happens. Raises VmFailed."""
        try:
            remove_durably(self._document)
        except OSError as error:
            raise VmFailed(f"{self._document} cannot be removed: {error.strerror}") from error

    def set_aside(self) -> None:
        """It could not be read. It is invalid first, and kept under another name. Raises VmFailed."""
        self.invalidate()
        try:
            os.replace(self.state, posixpath.join(self.directory, REFUSED))
        except OSError as error:
            raise VmFailed(f"{self.state} cannot be set aside: {error.strerror}") from error

    def clear(self) -> None:
        """Remove what is left of it, once it is not valid any more. Raises VmFailed."""
        assert not os.path.exists(self._document), "only after `invalidate`"
        try:
            for name in (STATE, PART, WRITING):
                remove_durably(posixpath.join(self.directory, name))
        except OSError as error:
            raise VmFailed(f"{error.filename} cannot be removed: {error.strerror}") from error

    def _found(self, fit: Fit) -> Saved:
        """What is there now, in the words of the document. Raises OSError."""
        disks = []
        for name in fit.files:
            status = os.stat(posixpath.join(self.directory, name))
            disks.append(DiskState(name, status.st_size, status.st_mtime_ns))
        size = os.stat(self.state).st_size
        return Saved(self.module, fit.description, fit.accelerator, size, tuple(disks))
