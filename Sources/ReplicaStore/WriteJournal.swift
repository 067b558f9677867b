import CLinux
import Foundation
import Glibc
import Platform

/// The write-ahead journal of one guest's disks: records one after the other from the front of the file, until a checkpoint starts a
/// new generation at the front again. What an older generation left behind the last record is no record of this one, so nothing has
/// to be cut off; and space that was written once is overwritten in place, which a file system flushes faster than a growing file.
///
///     | record 0 | record 1 | record 2 |   tail: next record   ... older generations' bytes ... | end of file
final class WriteJournal {
    /// A record and where it stands.
    struct Located {
        var offset: Int
        var record: JournalRecord
        var dataOffset: Int { offset + record.tableBytes }
    }

    /// What a commit writes: an extent and where its data lies.
    struct Staged {
        var extent: DiskExtent
        var bytes: UnsafeRawPointer?
    }

    /// The file grows by this much, so that few flushes have to note a new length.
    private static let growth = 16 << 20
    /// IOV_MAX: pwritev refuses more vectors in one call.
    private static let mostVectors = 1024

    let path: String
    private(set) var session: UUID
    private let hash: KeyedHash
    private let file: Descriptor
    private let limit: Int
    private var fileBytes: Int
    private var canAllocate = true
    private(set) var generation: UInt64
    private(set) var sequence: UInt64 = 0
    /// Where the next record goes.
    private(set) var tail = 0
    /// The end of the record that stands at `tail` and is not accepted yet.
    private var pendingEnd: Int?
    /// Bytes of a record that came to nothing may stand at `tail`.
    private(set) var hasLeftover = false

    /// Opens the file, which must be nobody else's, makes it if need be. Positions stand at the front; `scan` moves nothing.
    init(path: String, folder: String, session: UUID, generation: UInt64, hash: KeyedHash, limit: Int) throws {
        self.path = path
        self.session = session
        self.generation = generation
        self.hash = hash
        self.limit = limit
        file = try Descriptor(checking: open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600), "open", path)
        if clinux_lock_open_file(file.raw, 1, 0, 0) != 0 {
            guard errno == EAGAIN || errno == EACCES else { throw SystemError("fcntl(F_OFD_SETLK)", path) }
            throw ReplicaError.journalInUse(path: path)
        }
        fileBytes = try FileAccess.size(file.raw, path: path)
        if fileBytes == 0 { try FileAccess.syncFolder(folder) }
    }

    // MARK: Writing

    static func bytesNeeded(_ staged: [Staged]) -> Int {
        let data = staged.reduce(0) { $0 + $1.extent.dataBytes }
        return JournalRecord.roundedUp(JournalRecord.headerBytes + staged.count * JournalRecord.extentBytes + data)
    }

    /// Writes a record at the tail and flushes it. It counts from then on for a recovery, and for `accept`.
    func append(epoch: UInt64, _ staged: [Staged]) throws {
        let entries = staged.map { item in
            JournalRecord.Entry(extent: item.extent, hash: item.bytes.map { hash.hash128($0, item.extent.length) } ?? Hash128(low: 0, high: 0))
        }
        let record = JournalRecord(session: session, generation: generation, sequence: sequence, epoch: epoch, entries: entries)
        let end = tail + record.totalBytes
        try grow(to: end)
        hasLeftover = true
        pendingEnd = nil
        try write(record, staged)
        try flush()
        pendingEnd = end
    }

    private func write(_ record: JournalRecord, _ staged: [Staged]) throws {
        let table = record.encoded(hash)
        let padding = [UInt8](repeating: 0, count: record.totalBytes - record.tableBytes - record.dataBytes)
        try table.withUnsafeBytes { table in
            try padding.withUnsafeBytes { padding in
                var vectors: [iovec] = []
                vectors.reserveCapacity(staged.count + 2)
                vectors.append(iovec(iov_base: UnsafeMutableRawPointer(mutating: table.baseAddress), iov_len: table.count))
                for item in staged where item.extent.dataBytes > 0 {
                    vectors.append(iovec(iov_base: UnsafeMutableRawPointer(mutating: item.bytes), iov_len: item.extent.length))
                }
                if !padding.isEmpty {
                    vectors.append(iovec(iov_base: UnsafeMutableRawPointer(mutating: padding.baseAddress), iov_len: padding.count))
                }
                try writeAll(&vectors)
            }
        }
    }

    /// Writes the vectors from the tail on. They are used up.
    private func writeAll(_ vectors: inout [iovec]) throws {
        var offset = tail
        var first = 0
        while first < vectors.count {
            let count = min(Self.mostVectors, vectors.count - first)
            let written = vectors.withUnsafeMutableBufferPointer { buffer in
                retryingInterrupts { pwritev(file.raw, buffer.baseAddress.map { $0 + first }, Int32(count), off_t(offset)) }
            }
            guard written > 0 else { throw writeFailure("pwritev", path, needed: 0, code: written == 0 ? EIO : errno) }
            offset += written
            var left = written
            while first < vectors.count, left >= vectors[first].iov_len {
                left -= vectors[first].iov_len
                first += 1
            }
            if left > 0 {
                vectors[first].iov_base = vectors[first].iov_base.map { $0 + left }
                vectors[first].iov_len -= left
            }
        }
        fileBytes = max(fileBytes, offset)
    }

    /// Takes the space beforehand: when there is none, nothing has been written.
    private func grow(to end: Int) throws {
        guard canAllocate, end > fileBytes else { return }
        let generous = min(max(limit, end), (end + Self.growth - 1) / Self.growth * Self.growth)
        for size in [generous, end] {
            if retryingInterrupts({ clinux_allocate(file.raw, off_t(fileBytes), off_t(size - fileBytes), 0) }) == 0 {
                fileBytes = size
                return
            }
            switch errno {
            case EOPNOTSUPP, ENOSYS, EINVAL, ENODEV:
                canAllocate = false
                return
            case ENOSPC, EDQUOT, EFBIG:
                continue
            default:
                throw SystemError("fallocate", path)
            }
        }
        throw ReplicaError.noSpace(path: path, needed: end - fileBytes)
    }

    private func flush() throws {
        guard fdatasync(file.raw) == 0 else { throw SystemError("fdatasync", path) }
    }

    /// The record at the tail has been applied: the next goes behind it.
    func accept() {
        guard let end = pendingEnd else { return }
        tail = end
        sequence += 1
        pendingEnd = nil
        hasLeftover = false
    }

    /// Makes sure that what stands at the tail is no record, where an epoch has come to nothing and none is going to overwrite it.
    func eraseLeftover() throws {
        guard hasLeftover else { return }
        let zeroes = [UInt8](repeating: 0, count: JournalRecord.alignment)
        try zeroes.withUnsafeBytes { buffer in
            guard let base = buffer.baseAddress else { return }
            try FileAccess.write(file.raw, base, buffer.count, at: UInt64(tail), path: path)
        }
        try flush()
        pendingEnd = nil
        hasLeftover = false
    }

    /// From the front again. The new generation must be durable already: the records of the old one are going to be overwritten.
    func restart(generation: UInt64, session: UUID) {
        self.generation = generation
        self.session = session
        sequence = 0
        tail = 0
        pendingEnd = nil
        hasLeftover = false
        // One large epoch does not keep the space for ever.
        if fileBytes > limit { shrink(to: limit) }
    }

    /// Lets others open the journal.
    func unlock() { _ = clinux_unlock_open_file(file.raw) }

    func shrink(to size: Int) {
        if ftruncate(file.raw, off_t(size)) == 0 { fileBytes = size }
    }

    // MARK: Reading

    /// All whole records of this generation, in order. The first thing that is none ends it, unless a record of this generation stands
    /// further behind: a record is flushed before the next is written, so what stands in front of one was whole once.
    func scan() throws -> [Located] {
        let end = try FileAccess.size(file.raw, path: path)
        var records: [Located] = []
        var offset = 0
        while offset < end {
            do {
                let record = try record(at: offset, end: end)
                guard isNext(record, after: records.last?.record) else {
                    throw JournalRecord.Defect("a record is out of order (epoch \(record.epoch), sequence \(record.sequence))")
                }
                try checkData(record, at: offset)
                records.append(Located(offset: offset, record: record))
                offset += record.totalBytes
            } catch let defect as JournalRecord.Defect {
                if let later = try laterRecord(from: offset + JournalRecord.alignment, end: end, sequence: UInt64(records.count)) {
                    let what = "\(defect), but a record follows at \(later)"
                    throw ReplicaError.damagedJournal(path: path, offset: offset, what: what)
                }
                break
            }
        }
        return records
    }

    private func isNext(_ record: JournalRecord, after last: JournalRecord?) -> Bool {
        guard record.session == session, record.generation == generation else { return false }
        guard let last else { return record.sequence == 0 }
        return record.sequence == last.sequence + 1 && record.epoch > last.epoch
    }

    /// Header and extents of the record at `offset`; throws a `Defect` when there is none.
    private func record(at offset: Int, end: Int) throws -> JournalRecord {
        var bytes = [UInt8](repeating: 0, count: JournalRecord.headerBytes)
        let have = try read(&bytes, at: offset)
        let count = try tableBytes(bytes, room: have == bytes.count ? end - offset : have)
        bytes = [UInt8](repeating: 0, count: count)
        guard try read(&bytes, at: offset) == count else { throw JournalRecord.Defect("the file ends within a record") }
        let result: Result<JournalRecord, JournalRecord.Defect> = bytes.withUnsafeBytes { buffer in
            guard let base = buffer.baseAddress else { return .failure(JournalRecord.Defect("nothing")) }
            return Result { () throws(JournalRecord.Defect) in try JournalRecord.decode(base, count, hash) }
        }
        return try result.get()
    }

    private func tableBytes(_ bytes: [UInt8], room: Int) throws -> Int {
        let result: Result<Int, JournalRecord.Defect> = bytes.withUnsafeBytes { buffer in
            guard let base = buffer.baseAddress else { return .failure(JournalRecord.Defect("nothing")) }
            return Result { () throws(JournalRecord.Defect) in try JournalRecord.tableBytes(base, room: room) }
        }
        return try result.get()
    }

    private func read(_ bytes: inout [UInt8], at offset: Int) throws -> Int {
        try bytes.withUnsafeMutableBytes { buffer in
            guard let base = buffer.baseAddress else { return 0 }
            return try FileAccess.readSome(file.raw, base, buffer.count, at: UInt64(offset), path: path)
        }
    }

    private func checkData(_ record: JournalRecord, at offset: Int) throws {
        let located = Located(offset: offset, record: record)
        try forEachExtent(of: located) { entry, bytes in
            guard let bytes else { return }
            guard hash.hash128(bytes, entry.extent.length) == entry.hash else {
                throw JournalRecord.Defect("the checksum of a \(entry.extent) of epoch \(record.epoch) is wrong")
            }
        }
    }

    /// Reads a record's data and calls `body` with each extent, in order; the bytes are lent until it returns.
    func forEachExtent(of located: Located, _ body: (JournalRecord.Entry, UnsafeRawPointer?) throws -> Void) throws {
        let most = located.record.entries.reduce(1) { max($0, $1.extent.dataBytes) }
        let buffer = UnsafeMutableRawPointer.allocate(byteCount: most, alignment: 16)
        defer { buffer.deallocate() }
        var offset = located.dataOffset
        for entry in located.record.entries {
            let count = entry.extent.dataBytes
            guard entry.extent.kind == .data else {
                try body(entry, nil)
                continue
            }
            guard try FileAccess.readSome(file.raw, buffer, count, at: UInt64(offset), path: path) == count else {
                throw JournalRecord.Defect("the file ends within the data of epoch \(located.record.epoch)")
            }
            try body(entry, buffer)
            offset += count
        }
    }

    /// Looks for a header of this generation anywhere behind. The secret keeps data that only looks like one from passing for it.
    private func laterRecord(from start: Int, end: Int, sequence: UInt64) throws -> Int? {
        // The magic first: a full journal of 1 GiB has 262 144 places to look at.
        var words: (UInt64, UInt32) = (0, 0)
        for offset in stride(from: start, to: end, by: JournalRecord.alignment) {
            let have = try FileAccess.readSome(file.raw, &words, 12, at: UInt64(offset), path: path)
            guard have == 12, UInt32(littleEndian: words.1) == JournalRecord.magic else { continue }
            do {
                let record = try record(at: offset, end: end)
                if record.session == session, record.generation == generation, record.sequence > sequence { return offset }
            } catch is JournalRecord.Defect {
                // Something that looks like one; the next place may hold a record.
            }
        }
        return nil
    }
}
