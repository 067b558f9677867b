import NBDServer
import XCTest

final class HandshakeTests: XCTestCase {
    private static let greeting = hex(
        "4e42444d41474943",     // "NBDMAGIC"
        "49484156454f5054",     // "IHAVEOPT"
        "0003")                 // fixed newstyle, no zeroes

    private func header(_ option: UInt32, _ reply: UInt32, _ length: Int) -> [UInt8] {
        hex("0003e889045565a9") + option.big + reply.big + UInt32(length).big
    }
    private func acknowledge(_ option: UInt32) -> [UInt8] { header(option, 1, 0) }
    private func refusal(_ option: UInt32, _ error: UInt32, _ message: String) -> [UInt8] {
        header(option, 0x8000_0000 + error, message.utf8.count) + text(message)
    }

    /// The answers to options, without greeting.
    private func answers(_ options: [UInt8]..., exports: [any NBDExport] = [MemoryExport(description: "A disk")],
                         limits: NBDLimits = NBDLimits()) throws -> [UInt8] {
        let leave = Session.option(2)
        let result = try exchange(exports, hex("00000003") + options.flatMap { $0 } + leave, limits: limits)
        XCTAssertEqual(result.error, "")
        XCTAssertEqual(Array(result.output.prefix(18)), Self.greeting)
        XCTAssertEqual(Array(result.output.suffix(20)), acknowledge(2))
        return Array(result.output.dropFirst(18).dropLast(20))
    }

    func testGo() throws {
        let input = hex(
            "00000003",             // client flags
            "49484156454f5054",     // "IHAVEOPT"
            "00000008", "00000000", // STRUCTURED_REPLY
            "49484156454f5054",
            "0000000a", "0000001f", // SET_META_CONTEXT, 31 bytes
            "00000004", "6469736b", // "disk"
            "00000001",             // one query
            "0000000f", "626173653a616c6c6f636174696f6e", // "base:allocation"
            "49484156454f5054",
            "00000007", "00000010", // GO, 16 bytes
            "00000004", "6469736b", // "disk"
            "0003",                 // three requests
            "0003", "0001", "0002", // block size, name, description
            // transmission: DISC
            "25609513", "0000", "0002", "0000000000000001", "0000000000000000", "00000000")
        let expected = Self.greeting + hex(
            "0003e889045565a9", "00000008", "00000001", "00000000", // STRUCTURED_REPLY: acknowledged
            "0003e889045565a9", "0000000a", "00000004", "00000013", // SET_META_CONTEXT: a context
            "00000001", "626173653a616c6c6f636174696f6e",
            "0003e889045565a9", "0000000a", "00000001", "00000000",
            "0003e889045565a9", "00000007", "00000003", "0000000c", // GO: export
            "0000", "0000000000010000", "08ed",                     // 64 KiB; flags, flush, FUA, trim, zeroes, DF, fast zero
            "0003e889045565a9", "00000007", "00000003", "0000000e", // GO: block sizes
            "0003", "00000001", "00010000", "00100000",
            "0003e889045565a9", "00000007", "00000003", "00000006", // GO: name
            "0001", "6469736b",
            "0003e889045565a9", "00000007", "00000003", "00000008", // GO: description
            "0002", "412064697 36b",
            "0003e889045565a9", "00000007", "00000001", "00000000")
        let exports = [MemoryExport(description: "A disk")]
        let whole = try exchange(exports, input)
        XCTAssertEqual(whole, Exchange(output: expected, error: ""))
        XCTAssertEqual(try exchange(exports, input, step: 1), whole)
        for cut in 0..<input.count {
            let result = try exchange(exports, Array(input[0..<cut]))
            XCTAssertTrue(whole.output.starts(with: result.output), "cut at \(cut)")
            XCTAssertTrue(result.error.hasPrefix("The other end closed"), "cut at \(cut): \(result.error)")
        }
    }

    func testExportNameWithZeroes() throws {
        let input = hex("00000001") + Session.option(1, text("disk")) + Session.disconnect
        let result = try exchange([MemoryExport()], input)
        let expected = Self.greeting + hex("0000000000010000", "086d") + [UInt8](repeating: 0, count: 124)
        XCTAssertEqual(result, Exchange(output: expected, error: ""))
    }

    func testExportNameWithoutFixedHandshake() throws {
        let result = try exchange([MemoryExport()], hex("00000000") + Session.option(1, text("disk")) + Session.disconnect)
        XCTAssertEqual(result.output.count, 18 + 134)
        let other = try exchange([MemoryExport()], hex("00000000") + Session.option(3))
        XCTAssertEqual(other.error, "LIST at byte 4 from a client that does not know the fixed handshake")
    }

    func testFlagsAreTrue() throws {
        func flags(_ change: (MemoryExport) -> Void) throws -> [UInt8] {
            let export = MemoryExport()
            change(export)
            return Array(try exchange([export], Session.simple() + Session.disconnect).output.suffix(2))
        }
        XCTAssertEqual(try flags { _ in }, hex("086d"))
        XCTAssertEqual(try flags { $0.isReadOnly = true }, hex("0007"))
        XCTAssertEqual(try flags { $0.allowsSeveralConnections = true }, hex("096d"))
    }

    func testList() throws {
        let exports = [MemoryExport("a", description: "first"), MemoryExport("b")]
        XCTAssertEqual(try answers(Session.option(3), exports: exports),
                       header(3, 2, 10) + hex("00000001", "61") + text("first") + header(3, 2, 5) + hex("00000001", "62") + acknowledge(3))
        XCTAssertEqual(try answers(Session.option(3, [1])), refusal(3, 3, "LIST has no data"))
    }

    func testRefusedOptions() throws {
        XCTAssertEqual(try answers(Session.option(5)), refusal(5, 1, "This is a local socket, without TLS"))
        XCTAssertEqual(try answers(Session.option(11)), refusal(11, 1, "EXTENDED_HEADERS is not supported"))
        XCTAssertEqual(try answers(Session.option(4711, [1, 2, 3])), refusal(4711, 1, "Option 4711 is not supported"))
        XCTAssertEqual(try answers(Session.option(8, [1])), refusal(8, 3, "STRUCTURED_REPLY has no data"))
        XCTAssertEqual(try answers(Session.option(6, [UInt8](repeating: 0, count: 40_000))),
                       refusal(6, 9, "INFO has 40000 bytes, the limit is 32768"))
        XCTAssertEqual(try answers(Session.option(9, Session.name("disk") + hex("00000000"))),
                       refusal(9, 3, "LIST_META_CONTEXT comes after STRUCTURED_REPLY"))
    }

    func testMalformedOptions() throws {
        let cases: [(UInt32, [UInt8], UInt32, String)] = [
            (7, [], 3, "The option ends before the length of the export's name"),
            (7, hex("00000005", "6469736b"), 3, "The option ends within the export's name"),
            (7, hex("00001001"), 3, "The length of the export's name is 4097, the limit is 4096"),
            (7, Session.name("disk"), 3, "The option ends before the count of information requests"),
            (7, Session.name("disk") + hex("0002", "0003"), 3, "The option announces 2 information requests in 2 bytes"),
            (7, Session.name("disk") + hex("0000", "00"), 3, "The option announces 0 information requests in 1 bytes"),
            (7, Session.name("other") + hex("0000"), 6, "There is no export 'other'"),
            (10, Session.name("disk") + hex("ffffffff"), 3, "The option announces 4294967295 queries, more than fit"),
            (10, Session.name("disk") + hex("00000001", "00000009", "62"), 3, "The option ends within a query"),
            (10, Session.name("disk") + hex("00000000", "00"), 3, "The option has 1 bytes too many"),
            (10, Session.name("other") + hex("00000000"), 6, "There is no export 'other'"),
        ]
        for (option, data, error, message) in cases {
            XCTAssertEqual(try answers(Session.option(8), Session.option(option, data)), acknowledge(8) + refusal(option, error, message))
        }
    }

    func testMetaContexts() throws {
        func ask(_ option: UInt32, _ queries: [String], _ change: (MemoryExport) -> Void = { _ in }) throws -> [UInt8] {
            let export = MemoryExport()
            change(export)
            let data = Session.name("disk") + UInt32(queries.count).big + queries.flatMap { Session.name($0) }
            return Array(try answers(Session.option(8), Session.option(option, data), exports: [export]).dropFirst(20))
        }
        func context(_ option: UInt32, _ id: UInt32) -> [UInt8] { header(option, 4, 19) + id.big + text("base:allocation") }
        XCTAssertEqual(try ask(9, []), context(9, 0) + acknowledge(9))
        XCTAssertEqual(try ask(9, ["base:"]), context(9, 0) + acknowledge(9))
        XCTAssertEqual(try ask(9, ["qemu:dirty-bitmap:x"]), acknowledge(9))
        XCTAssertEqual(try ask(10, []), acknowledge(10))
        XCTAssertEqual(try ask(10, ["base:"]), acknowledge(10))
        XCTAssertEqual(try ask(10, ["x:y", "base:allocation"]), context(10, 1) + acknowledge(10))
        XCTAssertEqual(try ask(10, ["base:allocation"]) { $0.canRead = false }, acknowledge(10))
    }

    func testTheEmptyNameIsTheOnlyExport() throws {
        let go = Session.option(6, Session.name("") + hex("0000"))
        XCTAssertEqual(Array(try answers(go).prefix(20)), header(6, 3, 12))
        XCTAssertEqual(try answers(go, exports: [MemoryExport("a"), MemoryExport("b")]), refusal(6, 6, "There is no export ''"))
    }

    func testBlockSizeRequired() throws {
        var limits = NBDLimits()
        limits.minimumBlock = 512
        XCTAssertEqual(try answers(Session.option(6, Session.name("disk") + hex("0000")), limits: limits),
                       refusal(6, 8, "Requests have to be multiples of 512 bytes"))
    }

    func testEnds() throws {
        let cases: [([UInt8], String)] = [
            (hex("00000007"), "The client sets unknown flags in 0x7"),
            (hex("00000003") + text("IHAVEOPX") + hex("00000003", "00000000"),
             "The option at byte 4 begins with 0x49484156454f5058, not with IHAVEOPT"),
            (hex("00000003") + text("IHAVEOPT") + hex("00000007", "7fffffff"),
             "GO at byte 4 announces 2147483647 bytes, the limit is 32768"),
            (hex("00000003") + text("IHAVEOPT") + hex("00000001", "00001001"),
             "EXPORT_NAME at byte 4 announces 4097 bytes, the limit is 4096"),
            (Session.simple("other"), "EXPORT_NAME at byte 4 asks for 'other', which is not exported"),
            ([], "The other end closed the connection, at byte 0"),
        ]
        for (input, error) in cases { XCTAssertEqual(try exchange([MemoryExport()], input).error, error) }
    }
}
