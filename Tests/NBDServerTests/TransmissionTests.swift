import Foundation
import NBDServer
import XCTest

final class TransmissionTests: XCTestCase {
    private static let payload = (0..<16).map { UInt8($0 + 1) }
    private static let structured = hex("00000003") + Session.option(8)
        + Session.option(10, Session.name("disk") + hex("00000001") + Session.name("base:allocation"))
        + Session.option(7, Session.name("disk") + hex("0000"))
    /// Greeting; STRUCTURED_REPLY; context and acknowledgement; export, block sizes, acknowledgement.
    private static let structuredOpeningBytes = 18 + 20 + (20 + 19) + 20 + (20 + 12) + (20 + 14) + 20

    func testSimpleReplies() throws {
        let requests = hex(
            "25609513", "0001", "0001", "0000000000000011", "0000000000001004", "00000010", // WRITE, FUA, 16 at 0x1004
            "0102030405060708090a0b0c0d0e0f10",
            "25609513", "0000", "0000", "0000000000000012", "0000000000001000", "00000008", // READ 8 at 0x1000
            "25609513", "0002", "0006", "0000000000000013", "0000000000001004", "00000002", // WRITE_ZEROES, no hole
            "25609513", "0001", "0004", "0000000000000014", "0000000000002000", "00001000", // TRIM, FUA
            "25609513", "0000", "0003", "0000000000000015", "0000000000000000", "00000000", // FLUSH
            "25609513", "0000", "0000", "0000000000000016", "0000000000001004", "00000004", // READ
            "25609513", "0000", "0002", "0000000000000017", "0000000000000000", "00000000") // DISC
        let expected = hex(
            "67446698", "00000000", "0000000000000011",
            "67446698", "00000000", "0000000000000012", "0000000001020304",
            "67446698", "00000000", "0000000000000013",
            "67446698", "00000000", "0000000000000014",
            "67446698", "00000000", "0000000000000015",
            "67446698", "00000000", "0000000000000016", "00000304")
        try check(Session.simple() + requests, opening: 28, expected,
                  calls: ["write 4100 16 fua", "read 4096 8", "zeroes 4100 2", "trim 8192 4096 fua", "flush", "read 4100 4"])
    }

    func testStructuredReplies() throws {
        let requests = hex(
            "25609513", "0000", "0001", "0000000000000021", "0000000000002000", "00000002", "abcd", // WRITE 2 at 0x2000
            "25609513", "0000", "0000", "0000000000000022", "0000000000000ffe", "00001004", // READ from two bytes before a hole's end
            "25609513", "0000", "0007", "0000000000000023", "0000000000000000", "00004000", // BLOCK_STATUS
            "25609513", "0008", "0007", "0000000000000024", "0000000000002000", "00004000", // BLOCK_STATUS, one
            "25609513", "0004", "0000", "0000000000000025", "0000000000001fff", "00000002", // READ, not in fragments
            "25609513", "0012", "0006", "0000000000000026", "0000000000002000", "00001000", // WRITE_ZEROES, no hole, fast
            "25609513", "0000", "0000", "0000000000000027", "0000000000010000", "00000001", // READ beyond the end
            "25609513", "0000", "0002", "0000000000000028", "0000000000000000", "00000000")
        let beyond = "READ of 1 bytes at 65536 reaches beyond the end at 65536"
        let expected = hex(
            "67446698", "00000000", "0000000000000021",
            "668e33ef", "0000", "0002", "0000000000000022", "0000000c", "0000000000000ffe", "00001002",
            "668e33ef", "0001", "0001", "0000000000000022", "0000000a", "0000000000002000", "abcd",
            "668e33ef", "0001", "0005", "0000000000000023", "0000001c", "00000001",
            "00002000", "00000003", "00001000", "00000000", "00001000", "00000003",
            "668e33ef", "0001", "0005", "0000000000000024", "0000000c", "00000001", "00001000", "00000000",
            "668e33ef", "0001", "0001", "0000000000000025", "0000000a", "0000000000001fff", "00ab",
            "67446698", "00000000", "0000000000000026",
            "668e33ef", "0001", "8001", "0000000000000027") + UInt32(6 + beyond.utf8.count).big
            + hex("00000016") + UInt16(beyond.utf8.count).big + text(beyond)
        try check(Self.structured + requests, opening: Self.structuredOpeningBytes, expected,
                  calls: ["write 8192 2", "read 8192 2", "read 8191 2", "zeroes 8192 4096"])
    }

    /// Whole, byte by byte, and cut at every byte.
    private func check(_ input: [UInt8], opening: Int, _ expected: [UInt8], calls: [String]) throws {
        let export = MemoryExport()
        let whole = try exchange([export], input)
        XCTAssertEqual(whole.error, "")
        XCTAssertEqual(Array(whole.output.dropFirst(opening)), expected)
        XCTAssertEqual(export.calls, calls)
        XCTAssertEqual(try exchange([MemoryExport()], input, step: 1), whole)
        for cut in 0..<input.count {
            let export = MemoryExport()
            let result = try exchange([export], Array(input[0..<cut]))
            XCTAssertTrue(whole.output.starts(with: result.output), "cut at \(cut)")
            XCTAssertTrue(result.error.hasPrefix("The other end closed"), "cut at \(cut): \(result.error)")
            XCTAssertTrue(calls.starts(with: export.calls.filter { $0 != "abandon" }), "cut at \(cut): \(export.calls)")
            XCTAssertTrue(export.isBalanced, "cut at \(cut)")
        }
    }

    /// The error of one request on a simple connection; a WRITE's payload comes along, and a READ of what was there has to work after.
    private func error(_ command: UInt16, offset: UInt64 = 0, length: UInt32 = 4096, flags: UInt16 = 0, limits: NBDLimits = NBDLimits(),
                       _ change: (MemoryExport) -> Void = { _ in }) throws -> UInt32 {
        let export = MemoryExport()
        change(export)
        var input = Session.simple() + Session.request(command, cookie: 7, offset: offset, length: length, flags: flags)
        if command == 1 { input += [UInt8](repeating: 0x5a, count: Int(length)) }
        input += Session.request(3, cookie: 8) + Session.disconnect
        let result = try exchange([export], input, limits: limits)
        XCTAssertEqual(result.error, "")
        XCTAssertTrue(export.isBalanced)
        let replies = Array(result.output.dropFirst(28))
        _ = try XCTUnwrap(replies.count >= 32 ? true : nil, "too short: \(replies)")
        XCTAssertEqual(Array(replies[0..<4]), hex("67446698"))
        XCTAssertEqual(Array(replies[8..<16]), UInt64(7).big)
        XCTAssertEqual(Array(replies.suffix(8)), UInt64(8).big)
        return replies[4..<8].reduce(0) { $0 << 8 | UInt32($1) }
    }

    func testRefusals() throws {
        let (perm, inval, nospc, notsup) = (UInt32(EPERM), UInt32(EINVAL), UInt32(ENOSPC), UInt32(ENOTSUP))
        // Ranges.
        XCTAssertEqual(try error(0, offset: 61441), inval)
        XCTAssertEqual(try error(1, offset: 61441), nospc)
        XCTAssertEqual(try error(1, offset: 1 << 63), nospc)
        XCTAssertEqual(try error(1, offset: .max), nospc)
        XCTAssertEqual(try error(4, offset: 61441), inval)
        XCTAssertEqual(try error(6, offset: 61441), nospc)
        XCTAssertEqual(try error(6, length: .max), nospc)
        for command: UInt16 in [0, 1, 4, 6] { XCTAssertEqual(try error(command, length: 0), inval) }
        // Commands and flags.
        for command: UInt16 in [5, 8, 99, 0xffff] { XCTAssertEqual(try error(command), inval) }
        XCTAssertEqual(try error(1, flags: 2), inval)
        XCTAssertEqual(try error(1, flags: 0x8000), inval)
        XCTAssertEqual(try error(0, flags: 4), inval, "DF without structured replies")
        XCTAssertEqual(try error(7), inval, "BLOCK_STATUS without a context")
        XCTAssertEqual(try error(0, flags: 1), 0, "FUA is allowed everywhere")
        // Properties.
        for command: UInt16 in [1, 4, 6] { XCTAssertEqual(try error(command) { $0.isReadOnly = true }, perm) }
        for command: UInt16 in [0, 7] { XCTAssertEqual(try error(command) { $0.canRead = false }, notsup) }
        XCTAssertEqual(try error(6, flags: 0x10) { $0.zeroesFast = false }, notsup)
        XCTAssertEqual(try error(6, flags: 0x10), 0)
        // Sizes.
        XCTAssertEqual(try error(1, length: 1 << 20 + 1) { _ in }, nospc)
        var limits = NBDLimits()
        limits.minimumBlock = 512
        XCTAssertEqual(try error(1, offset: 1, length: 512, limits: limits), inval)
        XCTAssertEqual(try error(1, offset: 512, length: 511, limits: limits), inval)
    }

    func testLongRequests() throws {
        let export = MemoryExport(bytes: 4 << 20)
        var input = Session.simple()
        input += Session.request(1, cookie: 1, length: 1 << 20) + [UInt8](repeating: 1, count: 1 << 20)
        input += Session.request(1, cookie: 2, length: 1 << 20 + 1) + [UInt8](repeating: 2, count: 1 << 20 + 1)
        input += Session.request(0, cookie: 3, length: 1 << 20 + 1)
        input += Session.disconnect
        let result = try exchange([export], input)
        XCTAssertEqual(Array(result.output.dropFirst(28)),
                       hex("67446698", "00000000", "0000000000000001", "67446698", "00000016", "0000000000000002",
                           "67446698", "00000016", "0000000000000003"))
        XCTAssertEqual(export.calls, ["write 0 1048576"])
        XCTAssertEqual(export.content, [UInt8](repeating: 1, count: 1 << 20) + [UInt8](repeating: 0, count: 3 << 20))
        XCTAssertEqual(try exchange([export], Session.simple() + Session.request(1, length: 32 << 20 + 1)).error,
                       "WRITE at byte 24 announces 33554433 bytes, the limit is 33554432")
    }

    func testErrorsOfTheExport() throws {
        let codes: [(Int32, UInt32)] = [(EIO, 5), (EROFS, 1), (EDQUOT, 28), (ENOSPC, 28), (ENOTSUP, 95), (EBADF, 5), (ENOMEM, 12), (ESHUTDOWN, 108)]
        for (code, wire) in codes {
            for command: UInt16 in [0, 1, 3, 4, 6] {
                XCTAssertEqual(try error(command) { $0.failure = NBDError(code, "broken") }, wire, "\(command), errno \(code)")
            }
        }
        let export = MemoryExport()
        export.failure = NBDError(EIO, "The ring is gone")
        let result = try exchange([export], Self.structured + Session.request(1, cookie: 9, length: 2) + [1, 2] + Session.disconnect)
        XCTAssertEqual(Array(result.output.dropFirst(Self.structuredOpeningBytes)),
                       hex("668e33ef", "0001", "8001", "0000000000000009", "00000016", "00000005", "0010") + text("The ring is gone"))
    }

    func testGarbageInsteadOfARequest() throws {
        let result = try exchange([MemoryExport()], Session.simple() + Session.request(3) + [UInt8](repeating: 0xee, count: 28))
        XCTAssertEqual(result.error, "The request at byte 52 begins with 0xeeeeeeee")
        XCTAssertEqual(result.output.count, 28 + 16, "what came before is answered")
    }

    /// All sizes around the buffers' own, so that payloads begin and end at every place of them.
    func testManyWrites() throws {
        var random = SeededGenerator(seed: 7)
        let export = MemoryExport(bytes: 8 << 20)
        export.logsCalls = false
        var expected = [UInt8](repeating: 0, count: 8 << 20)
        var input = Session.simple()
        let sizes = [1, 27, 28, 4096, 4097, 16 << 10, 16 << 10 + 1, 64 << 10 - 28, 64 << 10, 64 << 10 + 28, 200_000]
        for cookie in 0..<300 {
            let size = sizes[Int(random.next() % UInt64(sizes.count))]
            let offset = Int(random.next() % UInt64(expected.count - size))
            let byte = UInt8(truncatingIfNeeded: random.next())
            let data = (0..<size).map { byte &+ UInt8(truncatingIfNeeded: $0 &* 7) }
            expected.replaceSubrange(offset..<(offset + size), with: data)
            input += Session.request(1, cookie: UInt64(cookie), offset: UInt64(offset), length: UInt32(size)) + data
        }
        let replies = (0..<300).flatMap { hex("67446698", "00000000") + UInt64($0).big }
        for step in [Int.max, 10_007] {
            memset(export.memory, 0, 8 << 20)
            let result = try exchange([export], input + Session.disconnect, step: step)
            XCTAssertEqual(Array(result.output.dropFirst(28)), replies)
            XCTAssertTrue(export.content == expected)
            XCTAssertTrue(export.isBalanced)
        }
    }
}
