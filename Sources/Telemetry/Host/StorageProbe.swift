import CLinux
import Foundation
import Glibc
import Platform

/// How long the storage below a folder takes for one block: 4 KiB written past the page cache and synced, then read back past it. The file
/// has no name (O_TMPFILE) and is gone with the look, so that no pool lists it and no file system stays busy because of it; where the file
/// system has no such files it has one for an instant.
struct StorageProbe: Sendable {
    struct Latency: Sendable, Equatable {
        var writeMs: Double
        /// Nil where the page cache cannot be passed by (tmpfs): what it answers is no storage's latency.
        var readMs: Double?
    }

    private struct Scratch: ~Copyable {
        let file: Descriptor
        let isDirect: Bool
    }

    private static let blockBytes = 4096
    let folder: String

    /// - Throws: `SystemError`: the folder is not there, is read-only, or full.
    func look() throws(SystemError) -> Latency {
        let scratch = try open()
        let block = try MappedMemory.anonymous(Self.blockBytes)
        // Not zeros, which storage may take for a hole.
        memset(block.base, 0xa5, block.length)
        let begin = MonotonicTime.now
        guard retryingInterrupts({ pwrite(scratch.file.raw, block.base, block.length, 0) }) == block.length else { throw SystemError("pwrite", folder) }
        guard fsync(scratch.file.raw) == 0 else { throw SystemError("fsync", folder) }
        let written = MonotonicTime.now
        guard scratch.isDirect else { return Latency(writeMs: written.milliseconds(since: begin)) }
        guard retryingInterrupts({ pread(scratch.file.raw, block.base, block.length, 0) }) == block.length else { throw SystemError("pread", folder) }
        return Latency(writeMs: written.milliseconds(since: begin), readMs: MonotonicTime.now.milliseconds(since: written))
    }

    private func open() throws(SystemError) -> Scratch {
        for direct in [true, false] {
            let file = clinux_open_scratch(folder, 1, direct ? 1 : 0)
            if file >= 0 { return Scratch(file: Descriptor(owning: file), isDirect: direct) }
            // EISDIR, ENOENT: a kernel without O_TMPFILE; EOPNOTSUPP: a file system without it (NFS); EINVAL: one without O_DIRECT.
            guard [EISDIR, EOPNOTSUPP, EINVAL, ENOENT].contains(errno) else { throw SystemError("open", folder) }
            let name = "\(folder)/.shadow-virt-probe-\(UUID().uuidString)"
            let named = clinux_open_scratch(name, 0, direct ? 1 : 0)
            if named >= 0 {
                unlink(name)
                return Scratch(file: Descriptor(owning: named), isDirect: direct)
            }
            // ext4 and others make the file before they refuse O_DIRECT.
            let error = SystemError("open", folder)
            unlink(name)
            guard direct, error.code == EINVAL else { throw error }
        }
        throw SystemError("open", folder, code: EINVAL)
    }
}
