import Foundation
import Glibc
import MigrationStream
import XCTest

/// A whole migration stream that ends by itself: pages, devices, and perhaps a description.
final class PassDialogueTests: XCTestCase {
    /// One full section with a 00 06 in it, which is no description; the closing byte.
    private static let device = bytes(hex: "04 00000003 0574696d657200000000 00000002 00 06 00000004 7b000000 7e 00000003 00")
    private static let description = Array(#"{"configuration":{"vmsd_name":"x"},"page_size":4096}"#.utf8)
    private static let described = bytes(hex: "06") + bigEndian(UInt32(description.count)) + description

    private func parse(_ stream: [UInt8]) -> (result: Result<PassState, StreamError>, ram: Outcome) {
        let pair = SocketPair()
        let writer = withThread {
            pair.feed(stream)
            pair.endOfStream()
        }
        defer { writer.wait() }
        let pool = ChunkPool(chunkBytes: 64 << 10, limitBytes: 1 << 20)
        let reader = StreamReader(fd: pair.ours, pool: pool)
        let dialogue = PassDialogue(reader: reader)
        var outcome = Outcome()
        let result = Result { () throws(StreamError) in try dialogue.read(into: &outcome.ram) }
        outcome.header = dialogue.header
        for chunk in reader.takeChunks() { pool.give(chunk) }
        return (result, outcome)
    }

    func testSnapshotWithADescription() throws {
        let (result, outcome) = parse(smallStream(blockLength: 0x4000, ram: pageRecords(4)) + Self.device + Self.described)
        let state = try result.get()
        XCTAssertEqual(state.device, Self.device)
        XCTAssertEqual(state.pages, 4)
        XCTAssertEqual(outcome.header?.blocks.map(\.name), ["pc.ram"])
    }

    func testWithoutADescription() throws {
        XCTAssertEqual(try parse(smallStream(ram: []) + Self.device).result.get().device, Self.device)
    }

    /// A device state that was cut off must not become an epoch.
    func testCutAtEveryByte() {
        let whole = smallStream(blockLength: 0x2000, ram: pageRecords(2)) + Self.device + Self.described
        for length in 0..<whole.count where length != whole.count - Self.described.count {
            guard case .failure(let error) = parse(Array(whole.prefix(length))).result else {
                // A cut behind a zero byte looks like an end; QEMU's closing of a stream that failed is told by its events.
                if whole[length - 1] == 0 { continue }
                XCTFail("A stream cut at \(length) of \(whole.count) was taken for whole")
                continue
            }
            XCTAssertEqual(error.kind, .endOfStream, "cut at \(length)")
        }
    }

    func testDeviceStateBeforeRAMIsRefused() {
        guard case .failure(let error) = parse(Fixture.header + Self.device).result else { return XCTFail("accepted") }
        XCTAssertEqual(error.kind, .unknownSection(4))
    }

    /// Whatever is wrong with a stream, QEMU can send the rest of it.
    func testTheRestIsReadToTheEnd() {
        let pair = SocketPair()
        let sent = withThread {
            pair.feed([UInt8](repeating: 0xa5, count: 8 << 20))
            pair.endOfStream()
        }
        PassDialogue.discardRest(of: pair.ours)
        sent.wait()
    }
}
