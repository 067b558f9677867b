import Dispatch
import Glibc
import MigrationStream
import XCTest

final class ChunkTests: XCTestCase {
    func testCeiling() throws {
        let pool = ChunkPool(chunkBytes: 64 << 10, limitBytes: 128 << 10)
        let first = try XCTUnwrap(pool.take())
        let second = try XCTUnwrap(pool.take())
        XCTAssertNil(pool.take())
        XCTAssertEqual(pool.bytesInUse, 128 << 10)
        pool.give(first)
        let again = try XCTUnwrap(pool.take())
        XCTAssertTrue(again === first, "a free chunk was not used again")
        pool.give(again)
        pool.give(second)
        XCTAssertEqual(pool.bytesInUse, 0)
    }

    func testGivenBackOnOtherThreads() throws {
        let pool = ChunkPool(chunkBytes: 64 << 10, limitBytes: 1 << 20, keepChunks: 2)
        for _ in 0..<50 {
            let chunks = (0..<8).compactMap { _ in pool.take() }
            DispatchQueue.concurrentPerform(iterations: chunks.count) { pool.give(chunks[$0]) }
        }
        XCTAssertEqual(pool.bytesInUse, 0)
    }

    /// A first pass larger than the pool: the sink takes chunks over as they fill, and waits when there are none.
    func testSinkThatTakesChunksOver() throws {
        final class Taken: @unchecked Sendable { var chunks: [Chunk] = []; var pages = 0; var waits = 0 }
        struct Sink: PageSink {
            let taken = Taken()
            let pool: ChunkPool
            mutating func blocks(_ blocks: [RAMBlock]) {}
            mutating func page(block: Int, offset: UInt64, bytes: UnsafeRawPointer) { taken.pages += 1 }
            mutating func fill(block: Int, offset: UInt64, byte: UInt8) {}
            mutating func filled(_ chunk: Chunk) -> Bool {
                taken.chunks.append(chunk)
                return true
            }
            mutating func poolExhausted() -> Bool {
                taken.waits += 1
                taken.chunks.forEach(pool.give)
                taken.chunks = []
                return true
            }
        }
        let pool = ChunkPool(chunkBytes: 64 << 10, limitBytes: 192 << 10)
        let pair = SocketPair()
        let pages = 600
        let stream = smallStream(blockLength: UInt64(pages) << 12, ram: pageRecords(pages))
        let writer = withThread { pair.feed(stream) }
        let reader = StreamReader(fd: pair.ours, pool: pool)
        var sink = Sink(pool: pool)
        _ = try COLODialogue(reader: reader).firstPass(into: &sink)
        writer.wait()
        XCTAssertEqual(sink.taken.pages, pages)
        XCTAssertGreaterThan(sink.taken.waits, 5)
        (sink.taken.chunks + reader.takeChunks()).forEach(pool.give)
        XCTAssertLessThanOrEqual(pool.bytesInUse, 64 << 10)
    }
}
