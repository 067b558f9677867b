import CLinux
import Foundation
import Glibc
import MigrationStream
import Platform

/// Everything a shadow worker knows, in memory files that its parent holds as well: when the worker dies, its successor goes on
/// from here, and an epoch that was being applied is applied again from the journal.
///
///     state file     0      magic | committed epoch | device slot | length 0 | length 1 | header length | session (16 bytes)
///                    4 KiB  the stream's header, JSON
///                    1 MiB  device state, slot 0 (64 MiB)
///                   65 MiB  device state, slot 1
///                  129 MiB  RAM blocks other than the shared ones, one after the other
///     journal file   0      magic | complete (0 or 1) | epoch | end
///                    4 KiB  the epoch's frames as received
///
/// Both files are sparse; what is not used costs nothing.
///
/// A new session begins with the memory as the one before left it: no epoch, but mostly what the guest still has. The source is told by hashes
/// (`hashes`), and sends the rest.
final class ShadowMemory: @unchecked Sendable {
    static let mebibyte = 1 << 20
    static let deviceLimit = 64 << 20
    static let headerLimit = mebibyte - 4096
    static let journalStart = 4096
    private static let magic: UInt64 = 0x3153_5653_5641_5457
    private static let blocksAt = mebibyte + 2 * deviceLimit
    /// Frames arrive into the journal where they stay; it grows by this much.
    private static let journalStep = 16 << 20

    /// A file that the shadow's QEMU has as one block of its RAM.
    struct SharedFile {
        let block: SharedBlock
        let fd: Int32

        init(_ block: SharedBlock, fd: Int32) {
            self.block = block
            self.fd = fd
        }
    }

    private struct MappedFile {
        let file: SharedFile
        let memory: MappedMemory
    }

    private let ram: [MappedFile]
    private let state: MappedMemory
    private let stateFD: Int32
    private let journal: MappedMemory
    private let journalFD: Int32
    private var journalBytes = 0
    private(set) var header: StreamHeader?
    /// Where each block's content lies, and whether QEMU has it at once.
    private var blocks: [(base: UnsafeMutableRawPointer, isShared: Bool)] = []

    /// The size that the parent gives the state file: enough for the other blocks of any guest we know (QXL: 64 MiB, VGA: 16 MiB).
    static let otherBlocksLimit = 1 << 30
    static let stateBytes = blocksAt + otherBlocksLimit

    /// Files for a new session, for the parent to hold.
    static func makeFiles() throws(SystemError) -> (journal: Int32, state: Int32) {
        let journal = try memoryFile("shadow-virt-journal", bytes: journalStep)
        let state = try memoryFile("shadow-virt-state", bytes: stateBytes)
        return (journal.release(), state.release())
    }

    /// Maps the files. All descriptors stay the caller's, for as long as this lives.
    /// - Parameter header: what the shared files were filled for, when the state file that tells it is lost; nil: they hold nothing of value.
    init(_ files: [SharedFile], journalFD: Int32, stateFD: Int32, header: StreamHeader? = nil) throws {
        self.journalFD = journalFD
        self.stateFD = stateFD
        var info = stat()
        ram = try files.map { file in
            guard fstat(file.fd, &info) == 0, UInt64(info.st_size) == file.block.byteCount else {
                throw WorkerFailure("The shadow's memory file of \(file.block.name) has \(info.st_size) bytes, its block \(file.block.byteCount)")
            }
            return MappedFile(file: file, memory: try MappedMemory.shared(file.fd, length: Int(file.block.byteCount), what: "the shadow's \(file.block.name)"))
        }
        let ramBytes = files.reduce(0) { $0 + Int($1.block.byteCount) }
        state = try MappedMemory.shared(stateFD, length: Self.stateBytes, what: "shadow state")
        // The address range of the largest epoch there can be: every page, with its entry and its frame's header, and disk writes.
        journal = try MappedMemory.shared(journalFD, length: ramBytes + ramBytes / 64 + (4 << 30), what: "the journal")
        guard fstat(journalFD, &info) == 0 else { throw SystemError("fstat", "journal") }
        journalBytes = Int(info.st_size)
        if word(0) == Self.magic {
            try restore()
        } else if let header, (try? place(header)) != nil {
            try keep(header)
        }
    }

    /// What an earlier session committed is none of this one's epochs.
    func begin(_ session: UUID) {
        let (low, high) = withUnsafeBytes(of: session.uuid) { ($0.load(as: UInt64.self), $0.load(fromByteOffset: 8, as: UInt64.self)) }
        guard word(6) != low || word(7) != high else { return }
        setWord(1, 0)
        setWord(3, 0)
        setWord(4, 0)
        setJournalWord(1, 0)
        setWord(6, low)
        setWord(7, high)
    }

    // MARK: State words

    private func word(_ index: Int) -> UInt64 { state.base.load(fromByteOffset: index * 8, as: UInt64.self) }
    private func setWord(_ index: Int, _ value: UInt64) { state.base.storeBytes(of: value, toByteOffset: index * 8, as: UInt64.self) }
    private func journalWord(_ index: Int) -> UInt64 { journal.base.load(fromByteOffset: index * 8, as: UInt64.self) }
    private func setJournalWord(_ index: Int, _ value: UInt64) {
        journal.base.storeBytes(of: value, toByteOffset: index * 8, as: UInt64.self)
    }

    /// The last epoch that is whole in RAM, blocks and device state; 0: none.
    var committedEpoch: UInt64 { word(1) }

    var deviceState: UnsafeRawBufferPointer {
        let slot = Int(word(2) & 1)
        return UnsafeRawBufferPointer(start: state.base + Self.mebibyte + slot * Self.deviceLimit, count: Int(word(3 + slot)))
    }

    // MARK: Introduction

    /// Takes the stream's header of a new session, or compares it with the one this session has. Memory that was filled for another one is cleared.
    func introduce(_ header: StreamHeader, waiting: [WaitingBlock] = []) throws {
        if let known = self.header {
            if known == header { return }
            guard committedEpoch == 0 else { throw WorkerFailure("The primary's RAM layout is not the one this session began with") }
            self.header = nil
        }
        if !waiting.isEmpty { try Self.check(header, fits: waiting) }
        setWord(0, 0)
        try place(header)
        do {
            try clear()
            try keep(header)
        } catch {
            // With a header the next connection would go on over memory that is not zero.
            self.header = nil
            throw error
        }
    }

    /// For a successor.
    private func keep(_ header: StreamHeader) throws {
        let json = try JSONEncoder().encode(header)
        guard json.count <= Self.headerLimit else { throw WorkerFailure("The stream's header has \(json.count) bytes") }
        json.withUnsafeBytes { bytes in
            if let base = bytes.baseAddress { memcpy(state.base + 4096, base, bytes.count) }
        }
        setWord(5, UInt64(json.count))
        setWord(0, Self.magic)
    }

    /// A fresh shadow counts as all zero: that is what the source's page table starts from.
    private func clear() throws {
        guard clinux_punch_hole(stateFD, off_t(Self.blocksAt), off_t(Self.otherBlocksLimit)) == 0 else { throw SystemError("fallocate", "shadow state") }
        for (mapped, block) in ram.map({ ($0, $0.file.block) }) {
            guard block.isPreallocated else {
                guard clinux_punch_hole(mapped.file.fd, 0, off_t(block.byteCount)) == 0 else { throw SystemError("fallocate", "the shadow's \(block.name)") }
                continue
            }
            for offset in stride(from: 0, to: Int(block.byteCount), by: PageLocation.pageBytes) {
                let page = mapped.memory.base + offset
                if page.load(as: UInt64.self) != 0 || memcmp(page, page + 8, PageLocation.pageBytes - 8) != 0 { memset(page, 0, PageLocation.pageBytes) }
            }
        }
    }

    /// Compares with the QEMU that is to load the guest one day: better refused now than then. QEMU `ram.c`, `ram_load_precopy`.
    private static func check(_ header: StreamHeader, fits waiting: [WaitingBlock]) throws {
        let known = Dictionary(waiting.map { ($0.name, $0) }) { first, _ in first }
        for block in header.blocks {
            guard let there = known[block.name] else {
                throw WorkerFailure("The shadow's QEMU has no RAM block \(block.name), which the primary's has: a device or the firmware differs")
            }
            guard block.length == there.byteCount || (there.mostBytes > there.byteCount && block.length <= there.mostBytes) else {
                throw WorkerFailure("RAM block \(block.name) has \(block.length) bytes in the primary's QEMU and \(there.byteCount) in the shadow's: "
                    + "another release of QEMU's ROM files or of the firmware is installed there")
            }
        }
    }

    private func place(_ header: StreamHeader) throws {
        for (place, block) in header.blocks.enumerated() where block.index != place || block.length % UInt64(PageLocation.pageBytes) != 0 {
            throw WorkerFailure("RAM block \(block.name) has the number \(block.index) at place \(place) and \(block.length) bytes")
        }
        // Blocks of one name would lie in one place.
        guard Set(header.blocks.map(\.name)).count == header.blocks.count else { throw WorkerFailure("Two of the primary's RAM blocks have one name") }
        for shared in ram.map(\.file.block) {
            guard let block = header.blocks.first(where: { $0.name == shared.name }) else {
                throw WorkerFailure("The primary has no RAM block \(shared.name), only \(header.blocks.map(\.name).joined(separator: ", "))")
            }
            guard block.length == shared.byteCount else {
                throw WorkerFailure("The primary's \(shared.name) has \(block.length) bytes, the shadow's \(shared.byteCount)")
            }
        }
        var next = Self.blocksAt
        blocks = try header.blocks.map { block in
            if let mapped = ram.first(where: { $0.file.block.name == block.name }) { return (mapped.memory.base, true) }
            guard block.length <= UInt64(Self.stateBytes - next) else {
                throw WorkerFailure("RAM block \(block.name) of \(block.length) bytes is too large to be kept beside the RAM")
            }
            defer { next += Int(block.length) }
            return (state.base + next, false)
        }
        self.header = header
    }

    private func restore() throws {
        let count = Int(word(5))
        guard count <= Self.headerLimit else { throw WorkerFailure("The state file is damaged") }
        try place(JSONDecoder().decode(StreamHeader.self, from: Data(bytes: state.base + 4096, count: count)))
    }

    // MARK: Pages

    /// Where a page lies on this side; nil when there is no such page.
    @inline(__always)
    func page(_ location: PageLocation) -> UnsafeMutableRawPointer? {
        guard let header, location.block < header.blocks.count, !location.hasUnknownBits else { return nil }
        let offset = location.page << 12
        guard offset < header.blocks[location.block].length else { return nil }
        return blocks[location.block].base + Int(offset)
    }

    // MARK: Hashes

    /// A page to go on from.
    struct Cursor {
        fileprivate var block = 0
        fileprivate var page = 0
    }

    /// Hashes pages from `cursor` on to `buffer`, which has room for `most` of them; those of zeros as 0. Returns which ones, without the zero ones at
    /// both ends; nil: there are no more. What was never written to is passed over.
    func hashes(from cursor: inout Cursor, _ hasher: PageHash.Hasher, to buffer: UnsafeMutablePointer<UInt64>, most: Int) -> (first: PageLocation, count: Int)? {
        guard let header, cursor.block < header.blocks.count else { return nil }
        let block = header.blocks[cursor.block], pages = Int(block.length) / PageLocation.pageBytes
        let data = occupied(block, from: cursor.page)
        guard let data, data.lowerBound < pages else {
            cursor = Cursor(block: cursor.block + 1, page: 0)
            return (PageLocation(block: block.index, offset: 0), 0)
        }
        let range = data.lowerBound..<min(data.upperBound, pages, data.lowerBound + most)
        var (first, end) = (range.upperBound, range.upperBound)
        for page in range {
            let (low, high) = hasher.hash128(blocks[block.index].base + page * PageLocation.pageBytes, PageLocation.pageBytes)
            let isZero = hasher.isZeroPage(low, high)
            if first == range.upperBound, isZero { continue }
            if first == range.upperBound { first = page }
            if !isZero { end = page + 1 }
            buffer[(page - first) * 2] = isZero ? 0 : low.littleEndian
            buffer[(page - first) * 2 + 1] = isZero ? 0 : high.littleEndian
        }
        cursor.page = range.upperBound
        return (PageLocation(block: block.index, offset: UInt64(first) << 12), first == range.upperBound ? 0 : end - first)
    }

    /// The next pages of a block that may hold something; nil: there are none. Reading a hole of a memory file fills it: 0.4 s for the 128 MiB of a
    /// QXL device, mostly never touched.
    private func occupied(_ block: RAMBlock, from page: Int) -> Range<Int>? {
        let pages = Int(block.length) / PageLocation.pageBytes
        guard page < pages else { return nil }
        let shared = ram.first { $0.file.block.name == block.name }
        let fd = shared?.file.fd ?? stateFD
        let start = shared == nil ? blocks[block.index].base - state.base : 0
        let data = Int(lseek(fd, off_t(start + page * PageLocation.pageBytes), 3 /* SEEK_DATA */))
        // ENXIO: only a hole up to the file's end. Other errors: the file system does not know.
        guard data >= 0 else { return errno == ENXIO ? nil : page..<pages }
        let first = (data - start) / PageLocation.pageBytes
        guard first < pages else { return nil }
        let hole = Int(lseek(fd, off_t(data), 4 /* SEEK_HOLE */))
        return first..<(hole > data ? min(pages, (hole - start + PageLocation.pageBytes - 1) / PageLocation.pageBytes) : pages)
    }

    // MARK: Journal

    /// Where the next frame goes, with room for the largest.
    func journalSlot(at offset: Int) throws -> UnsafeMutableRawPointer {
        let need = offset + PageFrame.headerBytes + PageFrame.mostPayloadBytes
        if need > journalBytes {
            guard need <= journal.length else { throw WorkerFailure("An epoch is larger than the guest's whole memory and 4 GiB of disk writes") }
            let size = min(journal.length, (need + Self.journalStep - 1) / Self.journalStep * Self.journalStep)
            guard ftruncate(journalFD, off_t(size)) == 0 else { throw SystemError("ftruncate", "journal") }
            journalBytes = size
        }
        return journal.base + offset
    }

    /// Marks the frames up to `end` as a whole epoch: from here on it will be applied, by us or by our successor.
    func complete(_ epoch: UInt64, end: Int) {
        setJournalWord(2, epoch)
        setJournalWord(3, UInt64(end))
        setJournalWord(1, 1)
    }

    /// An epoch that a predecessor had complete but perhaps not applied.
    var completeEpoch: (epoch: UInt64, end: Int)? {
        journalWord(1) == 1 ? (journalWord(2), Int(journalWord(3))) : nil
    }

    /// Copies a complete epoch to where it belongs. Repeating it changes nothing.
    func apply(_ epoch: UInt64, end: Int) {
        var offset = Self.journalStart
        let slot = Int(word(2) & 1) ^ (committedEpoch == epoch ? 0 : 1)
        let device = state.base + Self.mebibyte + slot * Self.deviceLimit
        var deviceBytes = 0
        let patch = UnsafeMutableRawPointer.allocate(byteCount: PagePatch.mostBytes, alignment: 16)
        defer { patch.deallocate() }
        while offset < end {
            let frame = journal.base + offset
            let type = FrameType(rawValue: UInt8(truncatingIfNeeded: frame.loadUnaligned(fromByteOffset: 12, as: UInt32.self)))
            let count = Int(frame.loadUnaligned(fromByteOffset: 32, as: UInt32.self))
            let length = Int(frame.loadUnaligned(fromByteOffset: 36, as: UInt32.self))
            var blob = frame + PageFrame.headerBytes + count * PageFrame.entryBytes
            // Disk writes are the replicas' affair.
            switch type {
            case .device:
                let bytes = length - PageFrame.entryBytes
                memcpy(device + deviceBytes, blob, bytes)
                deviceBytes += bytes
            case .pages:
                for index in 0..<count {
                    let entry = FrameEntry.read(frame, index: index)
                    let location = PageLocation(word: entry.location)
                    guard let target = page(location) else { continue }
                    if location.isFill {
                        memset(target, Int32(entry.hashLow & 0xff), PageLocation.pageBytes)
                    } else if location.isPatch {
                        let available = frame + PageFrame.headerBytes + length - blob
                        guard let taken = PageCodec.restore(patch: blob, available: available, to: patch) else { continue }
                        blob += taken
                        PagePatch.apply(patch, to: target)
                    } else if location.isCompressed {
                        // It was restored once already, when it came.
                        blob += PageCodec.restore(blob, available: frame + PageFrame.headerBytes + length - blob, to: target) ?? 0
                    } else {
                        memcpy(target, blob, PageLocation.pageBytes)
                        blob += PageLocation.pageBytes
                    }
                }
            default: break
            }
            offset += PageFrame.headerBytes + length
        }
        setWord(3 + slot, UInt64(deviceBytes))
        setWord(2, UInt64(slot))
        setWord(1, epoch)
        setJournalWord(1, 0)
        // An epoch after a long break may have been large; its memory is not needed again soon.
        if end > 4 * Self.journalStep {
            _ = clinux_punch_hole(journalFD, off_t(Self.journalStep), off_t(journalBytes - Self.journalStep))
        }
    }

    // MARK: Activation

    /// What QEMU needs besides the shared blocks; lent until the closure returns.
    func withActivationStream<R>(_ body: (ActivationStream) throws -> R) throws -> R {
        guard let header, committedEpoch > 0 else { throw WorkerFailure("No epoch has been committed yet") }
        let contents = header.blocks.filter { !blocks[$0.index].isShared }.map { block in
            ActivationStream.Content(block: block.index,
                                     bytes: UnsafeRawBufferPointer(start: blocks[block.index].base, count: Int(block.length)),
                                     startsZero: ActivationStream.startsZero(block.name), occupied: occupied(block))
        }
        return try body(ActivationStream(header: header, contents: contents, deviceState: deviceState))
    }

    /// The parts of a block that were ever written to, bytes.
    private func occupied(_ block: RAMBlock) -> [Range<Int>] {
        var ranges: [Range<Int>] = []
        var page = 0
        while let next = occupied(block, from: page) {
            ranges.append(next.lowerBound * PageLocation.pageBytes..<next.upperBound * PageLocation.pageBytes)
            page = next.upperBound
        }
        return ranges
    }
}
