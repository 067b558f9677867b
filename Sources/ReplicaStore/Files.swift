import Glibc
import Platform

/// A file as a series of offsets: whole reads and writes, or an error that names the file.
enum FileAccess {
    static func write(_ fd: Int32, _ bytes: UnsafeRawPointer, _ count: Int, at offset: UInt64, path: String) throws {
        var done = 0
        while done < count {
            let n = retryingInterrupts { pwrite(fd, bytes + done, count - done, off_t(offset) + off_t(done)) }
            guard n > 0 else { throw writeFailure("pwrite", path, needed: count - done, code: n == 0 ? EIO : errno) }
            done += n
        }
    }

    /// Fills `bytes`; returns how much of it there was before the end of the file.
    static func readSome(_ fd: Int32, _ bytes: UnsafeMutableRawPointer, _ count: Int, at offset: UInt64, path: String) throws -> Int {
        var done = 0
        while done < count {
            let n = retryingInterrupts { pread(fd, bytes + done, count - done, off_t(offset) + off_t(done)) }
            guard n >= 0 else { throw SystemError("pread", path) }
            if n == 0 { break }
            done += n
        }
        return done
    }

    static func read(_ fd: Int32, _ bytes: UnsafeMutableRawPointer, _ count: Int, at offset: UInt64, path: String) throws {
        let done = try readSome(fd, bytes, count, at: offset, path: path)
        guard done == count else { throw ReplicaError.shortRead(path: path, offset: offset, missing: count - done) }
    }

    static func size(_ fd: Int32, path: String) throws -> Int {
        var info = stat()
        guard fstat(fd, &info) == 0 else { throw SystemError("fstat", path) }
        return Int(info.st_size)
    }

    /// Names in a folder are durable only after this.
    static func syncFolder(_ folder: String) throws {
        let fd = try Descriptor(checking: open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC), "open", folder)
        guard fsync(fd.raw) == 0 else { throw SystemError("fsync", folder) }
    }

    /// Makes a folder, unless it is there, so that it stays there.
    static func makeFolder(_ folder: String) throws {
        if mkdir(folder, 0o700) != 0, errno != EEXIST { throw SystemError("mkdir", folder) }
        try syncFolder(folder + "/..")
    }

    /// Removes a file so that it stays removed.
    static func remove(_ path: String, folder: String) throws {
        if unlink(path) != 0 {
            guard errno == ENOENT else { throw SystemError("unlink", path) }
            return
        }
        try syncFolder(folder)
    }

    /// Replaces a file whole: after a crash at any point it has the old content or the new one. `renamed` is called once the new
    /// content may be what is found.
    static func replace(_ path: String, folder: String, pieces: [UnsafeRawBufferPointer], renamed: () -> Void = {}) throws {
        let temporary = path + ".new"
        do {
            let fd = try Descriptor(checking: open(temporary, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600), "open", temporary)
            var offset: UInt64 = 0
            for piece in pieces {
                if let base = piece.baseAddress { try write(fd.raw, base, piece.count, at: offset, path: temporary) }
                offset += UInt64(piece.count)
            }
            guard fsync(fd.raw) == 0 else { throw writeFailure("fsync", temporary, needed: Int(offset)) }
            guard rename(temporary, path) == 0 else { throw writeFailure("rename", temporary, needed: 0) }
        } catch {
            unlink(temporary)
            throw error
        }
        renamed()
        try syncFolder(folder)
    }
}
