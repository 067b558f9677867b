import Foundation
import Glibc
import MigrationStream
import XCTest

/// Bytes written as hex, one field a line, with what the field is.
func fields(_ list: (hex: String, meaning: String)...) -> [UInt8] { list.flatMap { bytes(hex: $0.hex) } }

func bytes(hex: String) -> [UInt8] {
    let digits = hex.utf8.compactMap { Character(UnicodeScalar($0)).hexDigitValue }
    return stride(from: 0, to: digits.count - 1, by: 2).map { UInt8(digits[$0] << 4 | digits[$0 + 1]) }
}

func page(_ byte: UInt8) -> [UInt8] { Array(repeating: byte, count: 4096) }

func bigEndian(_ value: some FixedWidthInteger) -> [UInt8] { withUnsafeBytes(of: value.bigEndian) { Array($0) } }

/// A whole first pass of one block: `ram` start, and an end section that holds `ram`. Without a configuration section.
func smallStream(blockLength: UInt64 = 0x1000, name: [UInt8] = bytes(hex: "06 70632e72616d"), ram: [UInt8]) -> [UInt8] {
    var stream = Fixture.header + bytes(hex: "01 00000002 03 72616d 00000000 00000004")
    stream += bigEndian(blockLength | 4) + name + bigEndian(blockLength)
    stream += bytes(hex: "0000000000000010 7e 00000002 03 00000002")
    stream += ram
    stream += bytes(hex: "0000000000000010 7e 00000002")
    return stream
}

/// Pages 0, 1, ... of one block, page n full of the byte n.
func pageRecords(_ count: Int, name: [UInt8] = bytes(hex: "06 70632e72616d")) -> [UInt8] {
    var records: [UInt8] = []
    records.reserveCapacity(count * 4104 + 256)
    for index in 0..<count {
        records += bigEndian(UInt64(index << 12) | (index == 0 ? 0x08 : 0x28))
        if index == 0 { records += name }
        records += page(UInt8(truncatingIfNeeded: index))
    }
    return records
}

/// Both ends of a socket pair. `ours` is for the reader, `theirs` plays QEMU.
final class SocketPair: @unchecked Sendable {
    let ours: Int32
    let theirs: Int32
    private var open = true

    init() {
        var ends: [Int32] = [-1, -1]
        precondition(socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0)
        (ours, theirs) = (ends[0], ends[1])
        var size: Int32 = 1 << 20
        for end in ends { setsockopt(end, SOL_SOCKET, SO_SNDBUF, &size, 4) }
    }

    deinit {
        close(ours)
        if open { close(theirs) }
    }

    func feed(_ bytes: [UInt8], atATime: Int = .max) {
        var rest = bytes[...]
        while !rest.isEmpty {
            let sent = rest.withUnsafeBytes { send(theirs, $0.baseAddress, min($0.count, atATime), Int32(MSG_NOSIGNAL)) }
            guard sent > 0 else { return }
            rest = rest.dropFirst(sent)
        }
    }

    /// The reader finds the end of the stream behind what was fed.
    func endOfStream() { shutdown(theirs, Int32(SHUT_WR)) }

    func closeTheirs() {
        open = false
        close(theirs)
    }

    /// The next u32 from our side, nil when it hung up.
    func message() -> UInt32? {
        var word: UInt32 = 0
        return recv(theirs, &word, 4, Int32(MSG_WAITALL)) == 4 ? UInt32(bigEndian: word) : nil
    }
}

/// Keeps pages one by one, so that a mutated block list of exabytes costs nothing. Checks what the parser promises.
struct SparseRAM: PageSink, Equatable {
    struct Place: Hashable {
        let block: Int
        let offset: UInt64
    }

    var list: [RAMBlock] = []
    var pages: [Place: [UInt8]] = [:]

    mutating func blocks(_ blocks: [RAMBlock]) { list = blocks }

    mutating func page(block: Int, offset: UInt64, bytes: UnsafeRawPointer) {
        check(block, offset)
        pages[Place(block: block, offset: offset)] = Array(UnsafeRawBufferPointer(start: bytes, count: 4096))
    }

    mutating func fill(block: Int, offset: UInt64, byte: UInt8) {
        check(block, offset)
        pages[Place(block: block, offset: offset)] = Array(repeating: byte, count: 4096)
    }

    private func check(_ block: Int, _ offset: UInt64) {
        precondition(offset % 4096 == 0 && offset + 4096 <= list[block].length, "The parser let a page out of its block")
    }
}

/// What a parse came to, for comparing ways of feeding it.
struct Outcome: Equatable {
    var ram = SparseRAM()
    var header: StreamHeader?
    var device: [UInt8]?
    var error: StreamError?
}

/// A wrong unwrap in a test ends that test, not the process.
func unwrapped<T>(_ value: T?, _ what: String = "value", file: StaticString = #filePath, line: UInt = #line) throws -> T {
    try XCTUnwrap(value, what, file: file, line: line)
}

func withThread(_ body: @escaping @Sendable () -> Void) -> DispatchGroup {
    let group = DispatchGroup()
    group.enter()
    Thread.detachNewThread {
        body()
        group.leave()
    }
    return group
}
