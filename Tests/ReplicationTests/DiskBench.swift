import Foundation
import Platform
import ReplicaStore
import XCTest
@testable import Replication

/// A mirror's side of NBD: fixed newstyle, EXPORT_NAME, simple replies.
final class DiskClient: @unchecked Sendable {
    enum Command: UInt16 { case write = 1, flush = 3, trim = 4, zeroes = 6 }

    private let socket: Descriptor
    private var waiting = 0

    init(_ path: String, _ name: String) throws {
        socket = try UnixSocket.connect(path)
        _ = try receive(18)
        try send(Self.bytes(UInt32(3)) + Array("IHAVEOPT".utf8) + Self.bytes(UInt32(1)) + Self.bytes(UInt32(name.utf8.count)) + Array(name.utf8))
        _ = try receive(10)
    }

    func hangUp() { shutdown(socket.raw, Int32(SHUT_RDWR)) }

    private static func bytes(_ value: some FixedWidthInteger) -> [UInt8] { withUnsafeBytes(of: value.bigEndian) { Array($0) } }
    private func send(_ bytes: [UInt8]) throws { try writeFully(socket.raw, bytes, deadline: .now.adding(milliseconds: 20_000), during: "a mirror") }
    private func receive(_ count: Int) throws -> [UInt8] {
        try readFully(socket.raw, count: count, deadline: .now.adding(milliseconds: 20_000), during: "a mirror")
    }

    /// Sends a request; its answer is to be collected.
    func request(_ command: Command, _ offset: Int, _ length: Int, _ payload: [UInt8] = []) throws {
        var request = Self.bytes(UInt32(0x2560_9513)) + Self.bytes(UInt16(0))
        request += Self.bytes(command.rawValue)
        request += Self.bytes(UInt64(waiting))
        request += Self.bytes(UInt64(offset)) + Self.bytes(UInt32(length))
        try send(request + payload)
        waiting += 1
    }

    /// The answers to all requests so far: the first error, 0 for none.
    func collect() throws -> UInt32 {
        var first: UInt32 = 0
        while waiting > 0 {
            let reply = try receive(16)
            waiting -= 1
            if first == 0 { first = reply[4..<8].reduce(0) { $0 << 8 | UInt32($1) } }
        }
        return first
    }
}

/// Bytes that nothing else is like.
func noise(_ count: Int, _ random: inout SeededGenerator) -> [UInt8] {
    var word = random.next() | 1
    var bytes = [UInt8](repeating: 0, count: (count + 7) & ~7)
    bytes.withUnsafeMutableBytes { buffer in
        for index in stride(from: 0, to: buffer.count, by: 8) {
            word = word &* 0x5851_f42d_4c95_7f2d &+ 0x1405_7b7e_f767_814f
            buffer.storeBytes(of: word ^ word >> 32, toByteOffset: index, as: UInt64.self)
        }
    }
    return Array(bytes[..<count])
}

/// Writes into a disk; nil: zeros. Much faster in a debug build than collections are.
func put(_ bytes: UnsafeRawPointer?, _ count: Int, at offset: Int, into disk: inout [UInt8]) {
    precondition(offset >= 0 && count >= 0 && offset + count <= disk.count)
    disk.withUnsafeMutableBytes { buffer in
        guard let base = buffer.baseAddress else { return }
        if let bytes { memcpy(base + offset, bytes, count) } else { memset(base + offset, 0, count) }
    }
}

/// A folder that goes with the object.
final class TemporaryFolder {
    let path = NSTemporaryDirectory() + "sv-disks-\(getpid())-\(UUID().uuidString.prefix(8))"
    init() throws { try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true) }
    deinit { try? FileManager.default.removeItem(atPath: path) }
}

/// A guest's disks: what they hold, what they held at each epoch, their mirrors, and the replicas' files.
final class DiskBench {
    let home: TemporaryFolder
    let folder: String
    let socketPath: String
    let replicas: [ReplicaSet.Disk]
    let captured: [CapturedDisk]
    private(set) var clients: [DiskClient] = []
    var content: [[UInt8]]
    private(set) var history: [UInt64: [[UInt8]]] = [:]
    var random: SeededGenerator

    /// - Parameter home: of an earlier bench, whose replicas are there.
    init(_ sizes: [Int], seed: UInt64, home: TemporaryFolder? = nil) throws {
        let home = try home ?? TemporaryFolder()
        self.home = home
        folder = home.path + "/state"
        socketPath = home.path + "/nbd-\(UUID().uuidString.prefix(4))"
        random = SeededGenerator(seed: seed)
        content = sizes.map { [UInt8](repeating: 0, count: $0) }
        captured = sizes.enumerated().map { CapturedDisk(index: $0, target: "vd\($0)", byteCount: UInt64($1)) }
        replicas = sizes.enumerated().map { ReplicaSet.Disk(index: $0, path: home.path + "/disk-\($0).raw", byteCount: UInt64($1)) }
        for replica in replicas where access(replica.path, F_OK) != 0 {
            var old = [UInt8](repeating: 0, count: Int(replica.byteCount))
            // What another guest left behind.
            put(noise(old.count / 2, &random), old.count / 2, at: 0, into: &old)
            try Data(old).write(to: URL(fileURLWithPath: replica.path))
        }
        for disk in content.indices { fill(disk, 0, sizes[disk] * 2 / 3) }
    }

    /// Changes a disk without anybody knowing.
    func fill(_ disk: Int, _ offset: Int, _ count: Int) {
        let bytes = noise(count, &random)
        put(bytes, count, at: offset, into: &content[disk])
    }

    func connect() throws { clients = try captured.map { try DiskClient(socketPath, $0.target) } }

    func file(_ disk: Int) throws -> [UInt8] { Array(try Data(contentsOf: URL(fileURLWithPath: replicas[disk].path))) }

    // MARK: The mirror

    /// As a mirror copies: zeroes for everything, then what is there, while the guest writes.
    func copy(guestWrites: Int = 0) throws {
        for disk in content.indices {
            try clients[disk].request(.zeroes, 0, content[disk].count)
            XCTAssertEqual(try clients[disk].collect(), 0)
            var offset = 0
            while offset < content[disk].count {
                let count = min(256 << 10, content[disk].count - offset)
                let piece = Array(content[disk][offset..<offset + count])
                let isZero = piece.withUnsafeBytes { memcmp($0.baseAddress!, $0.baseAddress! + 1, count - 1) == 0 } && piece[0] == 0
                if !isZero { try clients[disk].request(.write, offset, count, piece) }
                offset += count
            }
            XCTAssertEqual(try clients[disk].collect(), 0)
        }
        try write(guestWrites)
    }

    // MARK: The guest

    /// One write of the guest, which reaches disk and mirror.
    func write(_ disk: Int, _ offset: Int, _ bytes: [UInt8]) throws {
        put(bytes, bytes.count, at: offset, into: &content[disk])
        try clients[disk].request(.write, offset, bytes.count, bytes)
    }

    func zero(_ disk: Int, _ offset: Int, _ count: Int, trim: Bool = false) throws {
        put(nil, count, at: offset, into: &content[disk])
        try clients[disk].request(trim ? .trim : .zeroes, offset, count)
    }

    /// Some writes here and there, most of them in the same corner, so that they overlap.
    func write(_ count: Int, most: Int = 90_000) throws {
        for _ in 0..<count {
            let disk = Int(random.next() % UInt64(content.count))
            let size = content[disk].count
            let length = min(size, 1 + Int(random.next() % UInt64(random.next() % 4 == 0 ? most : 5000)))
            let range = random.next() % 3 == 0 ? size : min(size, 300_000)
            let offset = Int(random.next() % UInt64(max(1, range - length + 1)))
            if offset + length > size { continue }
            switch random.next() % 8 {
            case 0: try zero(disk, offset, length)
            case 1: try zero(disk, offset, length, trim: true)
            default:
                let bytes = noise(length, &random)
                try write(disk, offset, bytes)
            }
        }
        try flush()
    }

    func flush() throws {
        for client in clients { XCTAssertEqual(try client.collect(), 0) }
    }

    func remember(_ epoch: UInt64) { history[epoch] = content }

    // MARK: The replicas

    /// The files hold what the disks held at `epoch`.
    func assertReplicas(_ epoch: UInt64, _ what: String = "", file: StaticString = #filePath, line: UInt = #line) throws {
        let wanted = try XCTUnwrap(history[epoch], "epoch \(epoch) was never captured", file: file, line: line)
        for disk in content.indices {
            let held = try self.file(disk)
            if held == wanted[disk] { continue }
            let first = zip(held, wanted[disk]).enumerated().first { $0.element.0 != $0.element.1 }?.offset ?? -1
            XCTFail("Disk \(disk) differs from epoch \(epoch) at \(first); \(what)", file: file, line: line)
        }
    }
}

extension Rig {
    var bench: DiskBench { disks! }

    /// From the replicas' hashes to the first epoch's beginning.
    func copyDisks(guestWrites: Int = 20) throws {
        XCTAssertNotNil(parent.event(.disksPrepared), lastWords)
        try bench.connect()
        try bench.copy(guestWrites: guestWrites)
        try followDisks()
        try qemu.firstCopy()
    }

    func followDisks() throws {
        parent.send(.disksReady)
        XCTAssertNotNil(parent.event(.disksFollowing), lastWords)
    }

    func diskEpochs(_ count: Int, writes: Int = 12, pages: Int = 6) throws {
        for _ in 0..<count {
            try bench.write(writes)
            guard try qemu.request(ms: 10_000) else { throw ChannelError.timedOut(during: "a checkpoint") }
            bench.remember(qemu.epoch + 1)
            try qemu.finishEpoch(pages: pages)
        }
    }

    /// Memory and disks of the shadow are those of the newest epoch.
    func assertAllInStep(_ what: String = "", file: StaticString = #filePath, line: UInt = #line) throws {
        try assertInStep(what, file: file, line: line)
        try bench.assertReplicas(qemu.epoch, what, file: file, line: line)
    }

    /// Memory and disks of the shadow are those of one epoch. Only while no worker is there.
    func assertAllWhole(_ what: String, file: StaticString = #filePath, line: UInt = #line) throws -> UInt64 {
        let held = try assertWhole(what, file: file, line: line)
        if held > 0 { try bench.assertReplicas(held, what, file: file, line: line) }
        return held
    }
}
