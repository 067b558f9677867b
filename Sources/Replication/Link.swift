import Foundation
import Glibc
import Platform

/// One data connection: frames out and in, each direction counted from 0. One thread sends, one receives.
final class Link: @unchecked Sendable {
    /// Frames that introduce a session are checked with a secret everybody knows; the session's own travels in the first of them.
    static let openingHash = PageHash(secret: (0..<PageHash.secretBytes).map { UInt8(truncatingIfNeeded: $0 &* 167 &+ 43) })

    private let descriptor: Descriptor
    private var hash: PageHash
    private let stallMilliseconds: Double
    private var sendSequence: UInt64 = 0
    private var receiveSequence: UInt64 = 0
    private let buffer = UnsafeMutableRawPointer.allocate(byteCount: PageFrame.headerBytes + PageFrame.mostPages * PageFrame.entryBytes,
                                                          alignment: 16)
    private let vectors = UnsafeMutableBufferPointer<iovec>.allocate(capacity: PageFrame.mostPages + 1)
    private(set) var bytesSent: UInt64 = 0
    /// Where compressed pages of the frame under way lie; nil: pages are sent as they are.
    private let slots: UnsafeMutableRawPointer?

    init(_ descriptor: consuming Descriptor, hash: PageHash, stallMilliseconds: Double, compressesPages: Bool = false) {
        slots = compressesPages ? .allocate(byteCount: PageFrame.mostPages * PageCodec.slotBytes, alignment: 16) : nil
        self.descriptor = descriptor
        self.hash = hash
        self.stallMilliseconds = stallMilliseconds
    }

    deinit {
        buffer.deallocate()
        vectors.deallocate()
        slots?.deallocate()
    }

    var raw: Int32 { descriptor.raw }

    /// Ends both directions; whoever waits in a call on this link gets an error.
    func shutDown() { shutdown(descriptor.raw, Int32(SHUT_RDWR)) }

    private static func hash(for type: FrameType, _ session: PageHash) -> PageHash {
        switch type {
        case .pages, .device, .commit, .acknowledge, .disk: session
        case .hello, .heartbeat, .welcome, .failure, .streamHeader, .chunkHashes, .replicas, .memory, .pageHashes: openingHash
        }
    }

    // MARK: Sending

    /// Sends header, the entries that stand in `buffer`, and the first `blobs` vectors behind them.
    private func send(_ type: FrameType, epoch: UInt64, count: Int, blobs: Int, blobBytes: Int) throws(ChannelError) {
        let entries = count * PageFrame.entryBytes
        let header = FrameHeader(type: type, sequence: sendSequence, epoch: epoch, count: UInt32(count), length: UInt32(entries + blobBytes))
        Self.hash(for: type, hash).withHasher { header.write(to: buffer, $0) }
        vectors[0] = iovec(iov_base: buffer, iov_len: PageFrame.headerBytes + entries)
        try writeFully(raw, vectors: UnsafeMutableBufferPointer(rebasing: vectors[0...blobs]),
                       deadline: MonotonicTime.now.adding(milliseconds: stallMilliseconds), during: "sending a frame")
        sendSequence += 1
        bytesSent += UInt64(PageFrame.headerBytes + entries + blobBytes)
    }

    /// A frame with one blob or none.
    func send(_ type: FrameType, epoch: UInt64 = 0, blob: UnsafeRawBufferPointer) throws(ChannelError) {
        let (low, high) = Self.hash(for: type, hash).withHasher { hasher in
            blob.baseAddress.map { hasher.hash128($0, blob.count) } ?? (0, 0)
        }
        FrameEntry(location: UInt64(blob.count), hashLow: low, hashHigh: high).write(to: buffer, index: 0)
        vectors[1] = iovec(iov_base: UnsafeMutableRawPointer(mutating: blob.baseAddress), iov_len: blob.count)
        try send(type, epoch: epoch, count: 1, blobs: blob.isEmpty ? 0 : 1, blobBytes: blob.count)
    }

    func send(_ type: FrameType, epoch: UInt64 = 0, data: Data) throws(ChannelError) {
        let result: Result<Void, ChannelError> = data.withUnsafeBytes { bytes in
            Result { () throws(ChannelError) in try send(type, epoch: epoch, blob: bytes) }
        }
        try result.get()
    }

    /// A frame of one entry of numbers.
    func send(_ type: FrameType, epoch: UInt64, numbers: FrameEntry) throws(ChannelError) {
        numbers.write(to: buffer, index: 0)
        try send(type, epoch: epoch, count: 1, blobs: 0, blobBytes: 0)
    }

    /// Sends an epoch's pages that the shadow needs, and its device state. Returns what `sendCommit` has to say.
    func send(_ epoch: CapturedEpoch) throws(ChannelError) -> UInt64 {
        var count = 0
        var blobs = 0
        var bytes = 0
        var sentPages: UInt64 = 0
        for record in epoch.filledRecords where !record.location.isDropped {
            var word = record.location.word
            if !record.location.isFill, let page = record.bytes {
                let slot = slots.map { $0 + blobs * PageCodec.slotBytes }
                if record.location.isPatch, let slot {
                    let length = PageCodec.compress(patch: page, length: PagePatch.length(of: page) ?? 0, into: slot)
                    vectors[blobs + 1] = iovec(iov_base: slot, iov_len: length)
                    bytes += length
                } else if let slot, let length = PageCodec.compress(page, into: slot) {
                    word |= PageLocation.compressedBit
                    vectors[blobs + 1] = iovec(iov_base: slot, iov_len: length)
                    bytes += length
                } else {
                    vectors[blobs + 1] = iovec(iov_base: UnsafeMutableRawPointer(mutating: page), iov_len: PageLocation.pageBytes)
                    bytes += PageLocation.pageBytes
                }
                blobs += 1
            }
            FrameEntry(location: word, hashLow: record.hashLow, hashHigh: record.hashHigh).write(to: buffer, index: count)
            count += 1
            sentPages += 1
            if count == PageFrame.mostPages {
                try send(.pages, epoch: epoch.number, count: count, blobs: blobs, blobBytes: bytes)
                (count, blobs, bytes) = (0, 0, 0)
            }
        }
        if count > 0 { try send(.pages, epoch: epoch.number, count: count, blobs: blobs, blobBytes: bytes) }
        try sendDisks(epoch)
        guard !epoch.isPiece else { return sentPages }
        var rest = epoch.device[...]
        while !rest.isEmpty {
            let piece = rest.prefix(PageFrame.mostBlobBytes)
            try send(.device, epoch: epoch.number, blob: UnsafeRawBufferPointer(rebasing: piece))
            rest = rest.dropFirst(piece.count)
        }
        return sentPages
    }

    private func sendDisks(_ epoch: CapturedEpoch) throws(ChannelError) {
        var count = 0
        var blobs = 0
        var bytes = 0
        for record in epoch.disks.records {
            let length = record.extent.kind == .data ? record.extent.length : 0
            if count + DiskEntry.entries > PageFrame.mostPages || bytes + length > PageFrame.mostBlobBytes {
                try send(.disk, epoch: epoch.number, count: count, blobs: blobs, blobBytes: bytes)
                (count, blobs, bytes) = (0, 0, 0)
            }
            let (low, high) = record.bytes.map { bytes in hash.withHasher { $0.hash128(bytes, length) } } ?? (0, 0)
            DiskEntry(extent: record.extent, hashLow: low, hashHigh: high).write(to: buffer, index: count)
            if length > 0 {
                vectors[blobs + 1] = iovec(iov_base: record.bytes.map { UnsafeMutableRawPointer(mutating: $0) }, iov_len: length)
                blobs += 1
            }
            count += DiskEntry.entries
            bytes += length
        }
        if count > 0 { try send(.disk, epoch: epoch.number, count: count, blobs: blobs, blobBytes: bytes) }
    }

    /// Sends the word that the epoch is complete and sound, on top of epoch `base`.
    func sendCommit(_ epoch: CapturedEpoch, pages: UInt64, base: UInt64) throws(ChannelError) {
        FrameEntry(location: pages, hashLow: UInt64(epoch.device.count), hashHigh: UInt64(epoch.disks.records.count)).write(to: buffer, index: 0)
        FrameEntry(location: base, hashLow: 0, hashHigh: 0).write(to: buffer, index: 1)
        try send(.commit, epoch: epoch.number, count: 2, blobs: 0, blobBytes: 0)
    }

    // MARK: Receiving

    /// Receives one frame to `base`, which has room for the largest. Header and entries are verified, blobs are not yet.
    func receive(to base: UnsafeMutableRawPointer, deadline: MonotonicTime?) throws -> FrameHeader {
        try readFully(raw, into: base, count: PageFrame.headerBytes, deadline: deadline, during: "waiting for a frame")
        let header = try FrameHeader.read(base, expectedSequence: receiveSequence)
        try readFully(raw, into: base + PageFrame.headerBytes, count: Int(header.length),
                      deadline: MonotonicTime.now.adding(milliseconds: stallMilliseconds), during: "receiving a frame")
        let verified: Result<Void, FrameError> = Self.hash(for: header.type, hash).withHasher { hasher in
            Result { () throws(FrameError) in try header.verifyEntries(base, hasher) }
        }
        try verified.get()
        receiveSequence += 1
        return header
    }

    /// The single blob of a frame at `base`, verified.
    func blob(_ header: FrameHeader, _ base: UnsafeRawPointer) throws(FrameError) -> UnsafeRawBufferPointer {
        let length = Int(header.length) - PageFrame.entryBytes
        let entry = FrameEntry.read(base, index: 0)
        guard header.count == 1, entry.location == UInt64(length) else {
            throw .badLength(count: Int(header.count), length: Int(header.length), frame: header.sequence)
        }
        let start = base + PageFrame.headerBytes + PageFrame.entryBytes
        let (low, high) = Self.hash(for: header.type, hash).withHasher { $0.hash128(start, length) }
        guard low == entry.hashLow, high == entry.hashHigh else { throw .damaged("the \(header.type) blob", frame: header.sequence) }
        return UnsafeRawBufferPointer(start: start, count: length)
    }

    /// From here on with the session's own hash; after the introduction, before any other thread uses the link.
    func adopt(_ hash: PageHash) { self.hash = hash }
}
