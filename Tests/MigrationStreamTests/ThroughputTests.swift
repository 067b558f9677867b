import Glibc
import MigrationStream
import Platform
import XCTest

/// Parsing against plain read(2) of the same bytes into one buffer, in one run. Only on request, because it takes both cores:
///
///     SHADOW_VIRT_BENCHMARK=1 swift test -c release --filter ThroughputTests
final class ThroughputTests: XCTestCase {
    private struct Counter: PageSink {
        var pages = 0
        let pool: ChunkPool

        mutating func blocks(_ blocks: [RAMBlock]) {}
        mutating func page(block: Int, offset: UInt64, bytes: UnsafeRawPointer) { pages += 1 }
        mutating func fill(block: Int, offset: UInt64, byte: UInt8) {}
        mutating func filled(_ chunk: Chunk) -> Bool {
            pool.give(chunk)
            return true
        }
    }

    private static let rounds = 16
    private static let pagesARound = 16384

    /// Start section and pages go once, the end once; the pages between them `rounds` times: 1 GiB.
    private static let opening: [UInt8] = {
        let whole = smallStream(blockLength: UInt64(pagesARound) << 12, ram: [])
        return Array(whole.dropLast(13))
    }()
    private static let ending = bytes(hex: "0000000000000010 7e 00000002")

    private func megabytesASecond(_ records: [UInt8], _ receive: (Int32) throws -> Void) throws -> Double {
        let pair = SocketPair()
        let writer = withThread {
            pair.feed(Self.opening)
            for _ in 0..<Self.rounds { pair.feed(records) }
            pair.feed(Self.ending)
            pair.endOfStream()
        }
        let start = MonotonicTime.now
        try receive(pair.ours)
        let milliseconds = MonotonicTime.now.milliseconds(since: start)
        writer.wait()
        return Double(records.count * Self.rounds) / 1000 / milliseconds
    }

    func testAgainstPlainRead() throws {
        try XCTSkipIf(getenv("SHADOW_VIRT_BENCHMARK") == nil, "SHADOW_VIRT_BENCHMARK is not set")
        let records = pageRecords(Self.pagesARound)
        var ratios: [Double] = []
        for round in 0..<5 {
            let plain = try megabytesASecond(records) { fd in
                let buffer = UnsafeMutableRawPointer.allocate(byteCount: 1 << 20, alignment: 4096)
                defer { buffer.deallocate() }
                while read(fd, buffer, 1 << 20) > 0 {}
            }
            let parsed = try megabytesASecond(records) { fd in
                let pool = ChunkPool(limitBytes: 64 << 20)
                var sink = Counter(pool: pool)
                _ = try COLODialogue(reader: StreamReader(fd: fd, pool: pool)).firstPass(into: &sink)
                XCTAssertEqual(sink.pages, Self.pagesARound * Self.rounds)
            }
            print("round \(round): read \(Int(plain)) MB/s, parse \(Int(parsed)) MB/s, ratio \(parsed / plain)")
            ratios.append(parsed / plain)
        }
        print("median ratio \(ratios.sorted()[2])")
    }
}
