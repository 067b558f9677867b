import Foundation
import Platform
@testable import Replication

/// What a guest is made of at the end of an epoch, by hash.
struct GuestDigest: Equatable {
    var ram: UInt64
    var video: UInt64
    var device: UInt64

    static let hash = PageHash(secret: [UInt8](repeating: 9, count: 192))

    static func of(_ bytes: UnsafeRawBufferPointer) -> UInt64 {
        hash.withHasher { $0.hash64(bytes.baseAddress ?? UnsafeRawPointer(bitPattern: 16)!, bytes.count) }
    }
}

/// QEMU's side of COLO: a guest of 3 MiB RAM and 32 KiB video memory whose pages the tests change, and the stream it sends.
final class QEMUStandIn: @unchecked Sendable {
    static let ramPages = 768
    static let videoPages = 8
    static let ramBytes = ramPages * 4096

    private let socket: Descriptor
    private(set) var memory: [[UInt8]]
    private(set) var device: [UInt8] = []
    /// What the guest was at each epoch, by number; 0 is the first copy.
    private(set) var history: [UInt64: GuestDigest] = [:]
    private(set) var epoch: UInt64 = 0
    /// Time between the reply and VMSTATE_LOADED, which is the guest's pause.
    private(set) var pausesMilliseconds: [Double] = []
    private var random: SeededGenerator

    /// - Parameters:
    ///   - path: where its stream goes; nil: it sends passes, each over a connection of its own.
    ///   - memory: of a guest that ran before.
    init(_ path: String?, seed: UInt64, memory known: [[UInt8]]? = nil) throws {
        socket = if let path { try UnixSocket.connect(path) } else { try UnixSocket.messagePair().ours.duplicate() }
        random = SeededGenerator(seed: seed)
        if let known {
            memory = known
            return
        }
        memory = [[UInt8](repeating: 0, count: Self.ramBytes), [UInt8](repeating: 0, count: Self.videoPages * 4096)]
        for page in 0..<Self.ramPages where page % 3 != 0 { scribble(0, page) }
        for page in 0..<Self.videoPages where page % 2 == 0 { scribble(1, page) }
    }

    func hangUp() { shutdown(socket.raw, Int32(SHUT_RDWR)) }

    // MARK: The guest

    /// New content for a page: mostly noise, sometimes zeros, sometimes one byte all over.
    func scribble(_ block: Int, _ page: Int) {
        let kind = random.next() % 8
        var word = random.next()
        memory[block].withUnsafeMutableBytes { bytes in
            let base = bytes.baseAddress! + page * 4096
            if kind == 0 { memset(base, 0, 4096) } else if kind == 1 { memset(base, Int32(word & 0xff), 4096) } else {
                for index in stride(from: 0, to: 4096, by: 32) {
                    base.storeBytes(of: word, toByteOffset: index, as: UInt64.self)
                    word = word &* 0x5851_f42d_4c95_7f2d &+ 1
                }
            }
        }
    }

    private func remember() {
        history[epoch] = GuestDigest(ram: memory[0].withUnsafeBytes(GuestDigest.of), video: memory[1].withUnsafeBytes(GuestDigest.of),
                                     device: device.withUnsafeBytes(GuestDigest.of))
    }

    // MARK: The stream

    private static func big(_ value: some FixedWidthInteger) -> [UInt8] { withUnsafeBytes(of: value.bigEndian) { Array($0) } }
    /// A sum of as many arrays is more than the type checker of Swift 6.0 can take.
    private static func concatenated(_ parts: [UInt8]...) -> [UInt8] { Array(parts.joined()) }
    private static func string(_ text: String) -> [UInt8] { [UInt8(text.utf8.count)] + Array(text.utf8) }
    private static let names = ["pc.ram", "vga.vram"]
    private static let footer: [UInt8] = [0x7e] + big(UInt32(2))
    private static let end: [UInt8] = big(UInt64(0x10))

    /// RAM words for the pages; a page that is one byte all over may go as a fill.
    private func pages(_ list: [(Int, Int)]) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(list.count * 4112)
        var last = -1
        for (block, page) in list {
            let content = memory[block][page * 4096..<page * 4096 + 4096]
            let isZero = content.first == 0 && content.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: 8, as: UInt64.self) == 0 && memcmp($0.baseAddress!, $0.baseAddress! + 1, 4095) == 0 }
            let asFill = isZero && random.next() % 2 == 0
            bytes += Self.big(UInt64(page) << 12 | (asFill ? 0x02 : 0x08) | (block == last ? 0x20 : 0))
            if block != last { bytes += Self.string(Self.names[block]) }
            last = block
            if asFill { bytes.append(0) } else { bytes += content }
        }
        return bytes
    }

    func write(_ bytes: [UInt8], ms: Double = 10_000) throws {
        try writeFully(socket.raw, bytes, deadline: .now.adding(milliseconds: ms), during: "QEMU's stand-in")
    }

    private func message(_ ms: Double) throws -> UInt32 {
        let bytes = try readFully(socket.raw, count: 4, deadline: .now.adding(milliseconds: ms), during: "QEMU's stand-in")
        return bytes.reduce(0) { $0 << 8 | UInt32($1) }
    }

    struct Unexpected: Error { let message: UInt32 }

    private func expect(_ message: UInt32, ms: Double) throws {
        let got = try self.message(ms)
        guard got == message else { throw Unexpected(message: got) }
    }

    /// From the beginning of a stream to that of its pages.
    private func opening(_ machine: String, _ command: [UInt8]) -> [UInt8] {
        let total = UInt64(memory[0].count + memory[1].count)
        return Self.concatenated(
            Array("QEVM".utf8), Self.big(UInt32(3)),
            [0x07], Self.big(UInt32(machine.utf8.count)), Array(machine.utf8),                                          // configuration
            command,
            [0x01], Self.big(UInt32(2)), Self.string("ram"), Self.big(UInt32(0)), Self.big(UInt32(4)),     // ram start
            Self.big(total | 4), Self.string("pc.ram"), Self.big(UInt64(memory[0].count)),
            Self.string("vga.vram"), Self.big(UInt64(memory[1].count)), Self.end, Self.footer)
    }

    private var all: [(Int, Int)] { (0..<Self.ramPages).map { (0, $0) } + (0..<Self.videoPages).map { (1, $0) } }

    /// A whole background snapshot of the guest as it is, to `path`. Remembered as epoch `number`.
    /// - Parameter changes: pages that the guest has written to since the last one.
    func sendPass(_ number: UInt64, to path: String, changes: Int = 12, ms: Double = 10_000) throws {
        for _ in 0..<changes { scribble(0, Int(random.next() % UInt64(Self.ramPages))) }
        epoch = number
        // Never twice the same, and ended by the byte that ends device states.
        device = [0x04] + (0..<(100 + Int(random.next() % 3000))).map { UInt8(truncatingIfNeeded: $0 &+ Int(number)) } + [0]
        remember()
        let stream = try UnixSocket.connect(path)
        try writeFully(stream.raw, Self.concatenated(opening("pc-q35-99", []), [0x02], Self.big(UInt32(2)), pages(all), Self.end, Self.footer, device),
                       deadline: .now.adding(milliseconds: ms), during: "QEMU's stand-in")
        shutdown(stream.raw, Int32(SHUT_WR))
    }

    /// Everything up to CHECKPOINT_READY.
    func firstCopy(ms: Double = 10_000, repeating: Int = 1, machine: String = "pc-q35-99") throws {
        try write(opening(machine, [0x08, 0, 8, 0, 0]))                                                    // command: enable COLO
        for _ in 0..<repeating {
            try write(Self.concatenated([0x02], Self.big(UInt32(2)), pages(all), Self.end, Self.footer), ms: ms)   // ram part
        }
        let json = Array("{\"page_size\": 4096}".utf8)
        try write(Self.concatenated([0x03], Self.big(UInt32(2)), Self.end, Self.footer,                    // ram end
                                    [0x04, 1, 2, 3, 0x00], [0x06], Self.big(UInt32(json.count)), json))
        try expect(0, ms: ms)
        remember()
    }

    /// Asks for a checkpoint. False: none was granted in that time; ask no more, only wait again.
    func request(ms: Double) throws -> Bool {
        try write(Self.big(UInt32(1)))
        return try awaitReply(ms: ms)
    }

    func awaitReply(ms: Double) throws -> Bool {
        do { try expect(2, ms: ms) } catch ChannelError.timedOut { return false }
        return true
    }

    /// What the guest stopped with: `count` changed pages, some sent twice, some sent unchanged.
    func capture(_ count: Int) -> [UInt8] {
        epoch += 1
        var list: [(Int, Int)] = []
        for _ in 0..<count {
            let block = random.next() % 8 == 0 ? 1 : 0
            let page = Int(random.next() % UInt64(block == 0 ? Self.ramPages : Self.videoPages))
            if random.next() % 5 != 0 { scribble(block, page) }
            list.append((block, page))
        }
        device = (0..<(100 + Int(random.next() % 3000))).map { UInt8(truncatingIfNeeded: $0 &+ Int(epoch)) } + [0]
        remember()
        return Self.concatenated(Self.big(UInt32(3)), [0x03], Self.big(UInt32(2)), pages(list), Self.end, Self.footer, [0x00],
                                 Self.big(UInt32(4)), Self.big(UInt64(device.count)), device)
    }

    func awaitLoaded(ms: Double) throws -> Bool {
        do { try expect(5, ms: ms) } catch ChannelError.timedOut { return false }
        try expect(6, ms: ms)
        return true
    }

    /// One whole epoch.
    func runEpoch(pages count: Int, ms: Double = 10_000) throws {
        guard try request(ms: ms) else { throw ChannelError.timedOut(during: "a checkpoint") }
        try finishEpoch(pages: count, ms: ms)
    }

    /// From the reply on.
    func finishEpoch(pages count: Int, ms: Double = 10_000) throws {
        let body = capture(count)
        let start = MonotonicTime.now
        try write(body, ms: ms)
        guard try awaitLoaded(ms: ms) else { throw ChannelError.timedOut(during: "VMSTATE_LOADED") }
        pausesMilliseconds.append(MonotonicTime.now.milliseconds(since: start))
    }
}
