import Foundation
import MigrationStream
import Platform
import ReplicaStore

/// What a frame carries. Source to shadow: below 16; shadow to source: from 16 on.
enum FrameType: UInt8 {
    /// JSON `Hello`: the session, its blocks and secrets. First on every connection.
    case hello = 1
    /// Pages of an epoch; epoch 0 is the first copy, applied as it comes.
    case pages = 2
    /// A piece of the epoch's device state.
    case device = 3
    /// The epoch is complete: an entry (page entries, device bytes, disk writes) to compare with what arrived, and one with the epoch that it is
    /// put on top of. Numbers may leave out epochs: of a shadow that commits every Nth, or lags.
    case commit = 4
    /// Nothing to send, still here.
    case heartbeat = 5
    /// Writes to disks, two entries each (`DiskEntry`). Epoch 0: of the first copy, applied as they come.
    case disk = 6
    /// JSON `StreamHeader`: QEMU's stream has begun, on a connection whose `Hello` came before that.
    case streamHeader = 7
    /// JSON `Welcome`: where the shadow stands.
    case welcome = 16
    /// One entry: the committed epoch.
    case acknowledge = 17
    /// Text: why the shadow closes.
    case failure = 18
    /// Hashes of a replica's chunks, 16 bytes each; the frame's epoch: disk number in the upper 16 bits, first chunk below.
    case chunkHashes = 19
    /// JSON `ReplicaSeed` list: `chunkHashes` of all disks have been sent, and how they were made.
    case replicas = 20
    /// JSON `StreamHeader`: what the shadow's memory is laid out for. `pageHashes` of that memory follow.
    case memory = 21
    /// Hashes of pages one after the other, 16 bytes each, zeros for a page of zeros; the frame's epoch: the first one's `PageLocation`. Pages of which
    /// none tells are zero. Without a hash: that was all.
    case pageHashes = 22
}

/// One frame, all numbers little-endian:
///
///      0  u64 checksum    XXH3-64 of everything from byte 8 to the end of the entries
///      8  u32 magic       "SVF1"
///     12  u8  type        u8 0   u16 0
///     16  u64 sequence    from 0 on, one connection
///     24  u64 epoch
///     32  u32 count       entries
///     36  u32 length      bytes after this header
///     40  count x { u64 location or length, u64 u64 XXH3-128 }
///         the blobs that the entries speak of, one after the other
///
/// A blob's checksum is its entry's hash, so a page is hashed once on each side: the page table's hash travels with it.
enum PageFrame {
    static let headerBytes = 40
    static let entryBytes = 24
    static let magic: UInt32 = 0x3146_5653
    /// 1 MiB of pages a frame: large enough that headers cost nothing, small enough that a receiver's buffer stays small.
    static let mostPages = 256
    static let mostBlobBytes = mostPages * PageLocation.pageBytes
    static let mostPayloadBytes = mostPages * entryBytes + mostBlobBytes
}

struct FrameHeader: Equatable {
    var type: FrameType
    var sequence: UInt64
    var epoch: UInt64
    var count: UInt32
    var length: UInt32

    /// Writes header and, over what stands behind it already, the checksum. `base` has room for the header and the entries.
    func write(to base: UnsafeMutableRawPointer, _ hasher: PageHash.Hasher) {
        base.storeBytes(of: PageFrame.magic.littleEndian, toByteOffset: 8, as: UInt32.self)
        base.storeBytes(of: UInt32(type.rawValue).littleEndian, toByteOffset: 12, as: UInt32.self)
        base.storeBytes(of: sequence.littleEndian, toByteOffset: 16, as: UInt64.self)
        base.storeBytes(of: epoch.littleEndian, toByteOffset: 24, as: UInt64.self)
        base.storeBytes(of: count.littleEndian, toByteOffset: 32, as: UInt32.self)
        base.storeBytes(of: length.littleEndian, toByteOffset: 36, as: UInt32.self)
        let covered = PageFrame.headerBytes - 8 + Int(count) * PageFrame.entryBytes
        base.storeBytes(of: hasher.hash64(base + 8, covered).littleEndian, as: UInt64.self)
    }

    /// Reads and checks what can be checked before the payload is there: magic, type, sequence, sizes.
    static func read(_ base: UnsafeRawPointer, expectedSequence: UInt64) throws(FrameError) -> FrameHeader {
        func word32(_ offset: Int) -> UInt32 { UInt32(littleEndian: base.loadUnaligned(fromByteOffset: offset, as: UInt32.self)) }
        func word64(_ offset: Int) -> UInt64 { UInt64(littleEndian: base.loadUnaligned(fromByteOffset: offset, as: UInt64.self)) }
        let sequence = word64(16)
        guard word32(8) == PageFrame.magic else { throw FrameError.badMagic(word32(8), frame: expectedSequence) }
        guard sequence == expectedSequence else { throw FrameError.outOfSequence(got: sequence, expected: expectedSequence) }
        guard word32(12) <= 0xff, let type = FrameType(rawValue: UInt8(word32(12) & 0xff)) else {
            throw FrameError.unknownType(word32(12), frame: sequence)
        }
        let header = FrameHeader(type: type, sequence: sequence, epoch: word64(24), count: word32(32), length: word32(36))
        guard header.count <= PageFrame.mostPages, Int(header.length) <= PageFrame.mostPayloadBytes,
              Int(header.length) >= Int(header.count) * PageFrame.entryBytes else {
            throw FrameError.badLength(count: Int(header.count), length: Int(header.length), frame: sequence)
        }
        return header
    }

    /// Checks the entries, which stand at `base` behind the header.
    func verifyEntries(_ base: UnsafeRawPointer, _ hasher: PageHash.Hasher) throws(FrameError) {
        let stored = UInt64(littleEndian: base.loadUnaligned(as: UInt64.self))
        let covered = PageFrame.headerBytes - 8 + Int(count) * PageFrame.entryBytes
        guard hasher.hash64(base + 8, covered) == stored else { throw FrameError.damaged("header or entries", frame: sequence) }
    }
}

/// One entry of a frame.
struct FrameEntry {
    var location: UInt64
    var hashLow: UInt64
    var hashHigh: UInt64

    @inline(__always)
    func write(to base: UnsafeMutableRawPointer, index: Int) {
        let at = base + PageFrame.headerBytes + index * PageFrame.entryBytes
        at.storeBytes(of: location.littleEndian, as: UInt64.self)
        at.storeBytes(of: hashLow.littleEndian, toByteOffset: 8, as: UInt64.self)
        at.storeBytes(of: hashHigh.littleEndian, toByteOffset: 16, as: UInt64.self)
    }

    @inline(__always)
    static func read(_ base: UnsafeRawPointer, index: Int) -> FrameEntry {
        let at = base + PageFrame.headerBytes + index * PageFrame.entryBytes
        return FrameEntry(location: UInt64(littleEndian: at.loadUnaligned(as: UInt64.self)),
                          hashLow: UInt64(littleEndian: at.loadUnaligned(fromByteOffset: 8, as: UInt64.self)),
                          hashHigh: UInt64(littleEndian: at.loadUnaligned(fromByteOffset: 16, as: UInt64.self)))
    }
}

/// A write to a disk, as a frame carries it:
///
///     entry 2n      offset | length | disk number, kind << 8
///     entry 2n + 1  bytes that follow (0 for zeroes and trims) | XXH3-128 of them
struct DiskEntry {
    static let entries = 2
    /// The disk's number has 8 bits.
    static let mostDisks = 256

    var extent: DiskExtent
    var hashLow: UInt64
    var hashHigh: UInt64

    @inline(__always)
    func write(to base: UnsafeMutableRawPointer, index: Int) {
        let kind = UInt64(extent.disk) | UInt64(extent.kind.rawValue) << 8
        FrameEntry(location: extent.offset, hashLow: UInt64(extent.length), hashHigh: kind).write(to: base, index: index)
        FrameEntry(location: extent.kind == .data ? UInt64(extent.length) : 0, hashLow: hashLow, hashHigh: hashHigh).write(to: base, index: index + 1)
    }

    /// Reads one, with the number of its blob's bytes; checks kind and lengths, not whether the disk has such a place.
    static func read(_ base: UnsafeRawPointer, index: Int, frame: UInt64) throws(FrameError) -> (entry: DiskEntry, blobBytes: Int) {
        let first = FrameEntry.read(base, index: index)
        let second = FrameEntry.read(base, index: index + 1)
        guard first.hashHigh <= 0xffff, let kind = DiskExtent.Kind(rawValue: UInt8(first.hashHigh >> 8)),
              first.hashLow > 0, first.hashLow <= UInt64(Int.max), second.location == (kind == .data ? first.hashLow : 0),
              second.location <= UInt64(PageFrame.mostBlobBytes) else {
            throw .badContent("Frame \(frame) has a disk write of kind \(first.hashHigh >> 8) with \(first.hashLow) and \(second.location) bytes")
        }
        let extent = DiskExtent(disk: Int(first.hashHigh & 0xff), kind: kind, offset: first.location, length: Int(first.hashLow))
        return (DiskEntry(extent: extent, hashLow: second.hashLow, hashHigh: second.hashHigh), Int(second.location))
    }
}

/// What is wrong with a frame, and which one it was.
enum FrameError: Error, CustomStringConvertible, Equatable {
    case badMagic(UInt32, frame: UInt64)
    case unknownType(UInt32, frame: UInt64)
    case outOfSequence(got: UInt64, expected: UInt64)
    case badLength(count: Int, length: Int, frame: UInt64)
    case damaged(String, frame: UInt64)
    case unexpected(FrameType, state: String)
    case outsideBlock(block: Int, page: UInt64, frame: UInt64)
    case outsideDisk(disk: Int, offset: UInt64, length: Int, frame: UInt64)
    case badContent(String)

    var description: String {
        switch self {
        case .badMagic(let magic, let frame): "Frame \(frame) begins with 0x\(String(magic, radix: 16)), not with a frame's magic"
        case .unknownType(let type, let frame): "Frame \(frame) has the unknown type \(type)"
        case .outOfSequence(let got, let expected): "Frame \(got) came where \(expected) was due"
        case .badLength(let count, let length, let frame): "Frame \(frame) announces \(count) entries and \(length) bytes, which cannot be"
        case .damaged(let what, let frame): "Checksum mismatch in \(what) of frame \(frame)"
        case .unexpected(let type, let state): "A \(type) frame came while \(state)"
        case .outsideBlock(let block, let page, let frame): "Frame \(frame) names page \(page) of block \(block), which does not exist"
        case .outsideDisk(let disk, let offset, let length, let frame):
            "Frame \(frame) writes \(length) bytes at \(offset) of disk \(disk), which do not exist"
        case .badContent(let what): what
        }
    }
}

/// The source's introduction on a data connection.
struct Hello: Codable {
    var domain: String
    var hashSecret: Data
    /// What QEMU's stream says about itself: activation repeats it. Absent before the stream has begun: the disks are copied first.
    var header: StreamHeader?
    /// Sizes of the disks that come along, bytes, by number.
    var disks: [UInt64] = []
    /// The epoch that the source will send first, 0 for the first copy.
    var firstEpoch: UInt64
}

/// The shadow's answer.
struct Welcome: Codable {
    /// The last epoch that the shadow holds whole; 0 when none.
    var committedEpoch: UInt64
}

/// How a replica's chunks are hashed.
struct ReplicaSeed: Codable {
    var disk: Int
    var seed: Data
}
