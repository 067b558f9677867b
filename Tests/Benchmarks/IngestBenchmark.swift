import CXXHash
import Foundation
import Glibc
import Platform
import Replication
import Transport

/// The source worker fed with a synthetic COLO stream as fast as it takes it, against a reader that throws the same bytes away.
///
/// The worker is a process of its own as in production, with parser, page table, framing and the connection to a shadow; the shadow is a
/// sink that lets the kernel discard what arrives, so that it costs little of what the worker needs.
///
/// Ingest is what the guest waits for: from an epoch's first byte to its acknowledgement, while earlier epochs are hashed and shipped on
/// the same processors. The sustained rate, until the last commit, includes that work and the waits in which the guest runs on.
enum IngestBenchmark {
    /// 2 MiB is what a busy guest dirties in 20 ms; 16 MiB, 800 MB/s, fits into no processor's cache.
    static let contents: [(name: String, pages: Int, changed: Double)] = [
        ("2 MiB an epoch, every page changed", 512, 1), ("16 MiB an epoch, every page changed", 4096, 1),
        ("16 MiB an epoch, one page in ten changed", 4096, 0.1),
    ]
    static let regionPages = 8 * 4096
    /// Fed in each round.
    static let pages = 64 * 4096

    static func run(_ bench: Bench) throws {
        let rounds = bench.quick ? 2 : 5
        var rows: [[String]] = []
        var json: [String: Any] = [:]
        for (name, pages, changed) in contents {
            let epochs = Self.pages / pages / (bench.quick ? 2 : 1)
            var plain: [Double] = []
            var ours: [Double] = []
            var sustained: [Double] = []
            var cpu: [Double] = []
            var others: [Double] = []
            var othersCPU: [Double] = []
            for _ in 0..<rounds {
                plain.append(try Feeder(epochs, pages, changed).intoNothing().ingestRate)
                let result = try Feeder(epochs, pages, changed).intoWorker(bench, bench.shadowVirt)
                ours.append(result.ingestRate)
                sustained.append(result.rate)
                cpu.append(result.processorSecondsPerGiB)
                if let other = bench.otherBuild {
                    let result = try Feeder(epochs, pages, changed).intoWorker(bench, other)
                    others.append(result.ingestRate)
                    othersCPU.append(result.processorSecondsPerGiB)
                }
            }
            let ratio = Distribution(ours).median / Distribution(plain).median
            rows.append([name, format(Distribution(plain).median), format(Distribution(ours).median), format(ratio),
                         format(Distribution(sustained).median), format(Distribution(cpu).median)])
            if !others.isEmpty {
                rows.append(["  other build", "", format(Distribution(others).median),
                             format(Distribution(others).median / Distribution(plain).median), "", format(Distribution(othersCPU).median)])
            }
            json[name] = ["nothing_gib_per_second": Distribution(plain).median, "worker_gib_per_second": Distribution(ours).median,
                          "sustained_gib_per_second": Distribution(sustained).median,
                          "ratio": ratio, "worker_cpu_seconds_per_gib": Distribution(cpu).median]
            bench.target("ingest to reading into nothing, \(name)", format(ratio), ">= 0.7", met: ratio >= 0.7)
        }
        printTable("Ingest, median of \(rounds)",
                   ["content", "into nothing GiB/s", "worker GiB/s", "ratio", "sustained GiB/s", "worker CPU s/GiB"], rows)
        bench.results["ingest"] = json
    }
}

/// A sum of as many arrays is more than the type checker of Swift 6.0 can take.
private func concatenated(_ parts: [UInt8]...) -> [UInt8] { Array(parts.joined()) }

/// Plays QEMU's part of the stream.
private final class Feeder: @unchecked Sendable {
    struct Result {
        /// GiB a second until the last commit.
        var rate = 0.0
        /// GiB a second from each epoch's first byte to its acknowledgement.
        var ingestRate = 0.0
        var processorSecondsPerGiB = 0.0
    }

    private let epochs: Int
    private let changed: Double
    /// One epoch's bytes after SEND, the pages' contents varying with the epoch.
    private var body: [UInt8] = []
    private var pageOffsets: [Int] = []
    private var ingestMilliseconds = 0.0

    init(_ epochs: Int, _ pages: Int, _ changed: Double) {
        self.epochs = epochs
        self.changed = changed
        body = [0x03] + be32(2)
        for page in 0..<pages {
            let offset = UInt64(page) << 12
            body += page == 0 ? concatenated(be64(offset | 0x08), [6], Array("pc.ram".utf8)) : be64(offset | 0x28)
            pageOffsets.append(body.count)
            // Guest pages are neither zero nor random: text-like bytes with a tail of zeros.
            var content = [UInt8](repeating: 0, count: 4096)
            var seed = UInt32(page &+ 1)
            for index in 0..<3500 {
                seed = seed &* 1_664_525 &+ 1_013_904_223
                content[index] = UInt8(seed >> 26) &+ 32
            }
            body += content
        }
        body += concatenated(be64(0x10), [0x7e], be32(2), [0x00], be32(4), be64(100_000))
        body += concatenated([UInt8](repeating: 0x04, count: 99_999), [0x00])
    }

    private func be32(_ value: UInt32) -> [UInt8] { withUnsafeBytes(of: value.bigEndian) { Array($0) } }
    private func be64(_ value: UInt64) -> [UInt8] { withUnsafeBytes(of: value.bigEndian) { Array($0) } }

    private func push(_ fd: Int32, _ bytes: [UInt8]) throws {
        // As QEMU: 128 KiB a call.
        try bytes.withUnsafeBytes { buffer in
            var done = 0
            while done < buffer.count {
                let n = send(fd, buffer.baseAddress.map { $0 + done }, min(128 << 10, buffer.count - done), Int32(MSG_NOSIGNAL))
                guard n > 0 else { throw BenchFailure("The stream's reader is gone (errno \(errno))") }
                done += n
            }
        }
    }

    /// Changes the first word of some pages, spread evenly.
    private func alter(_ epoch: Int) {
        let step = max(1, Int(1 / changed))
        for page in stride(from: epoch % step, to: pageOffsets.count, by: step) {
            body[pageOffsets[page]] = UInt8(truncatingIfNeeded: epoch)
            body[pageOffsets[page] + 1] = UInt8(truncatingIfNeeded: epoch >> 8)
        }
    }

    /// One epoch as QEMU's side has it: it goes on when it has been answered.
    private func sendEpoch(_ epoch: Int, _ fd: Int32) throws {
        func expect(_ words: [UInt32]) throws {
            let got = try readFully(fd, count: words.count * 4, deadline: MonotonicTime.now.adding(milliseconds: 30_000), during: "COLO")
            guard got == words.flatMap(be32) else { throw BenchFailure("The other end said \(got), not \(words)") }
        }
        alter(epoch)
        try push(fd, be32(1))
        try expect([2])
        let begin = MonotonicTime.now
        try push(fd, be32(3))
        try push(fd, body)
        try expect([5, 6])
        ingestMilliseconds += MonotonicTime.now.milliseconds(since: begin)
    }

    /// The same turns with a reader that keeps nothing.
    func intoNothing() throws -> Result {
        var pair: [Int32] = [-1, -1]
        guard socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &pair) == 0 else { throw SystemError("socketpair") }
        defer { pair.forEach { close($0) } }
        let (reading, epochs, bytes) = (pair[1], epochs, body.count)
        startThread("nothing") {
            let buffer = UnsafeMutableRawPointer.allocate(byteCount: 1 << 20, alignment: 4096)
            defer { buffer.deallocate() }
            func skip(_ count: Int) -> Bool {
                var left = count
                while left > 0 {
                    let n = read(reading, buffer, min(left, 1 << 20))
                    if n <= 0 { return false }
                    left -= n
                }
                return true
            }
            func say(_ words: [UInt32]) { _ = words.map(\.bigEndian).withUnsafeBytes { send(reading, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) } }
            for _ in 0..<epochs {
                guard skip(4) else { return }
                say([2])
                guard skip(4 + bytes) else { return }
                say([5, 6])
            }
        }
        let begin = MonotonicTime.now
        for epoch in 0..<epochs { try sendEpoch(epoch, pair[0]) }
        let gibibytes = Double(epochs * bytes) / Double(1 << 30)
        return Result(rate: gibibytes / (MonotonicTime.now.milliseconds(since: begin) / 1000), ingestRate: gibibytes / (ingestMilliseconds / 1000))
    }

    func intoWorker(_ bench: Bench, _ program: String) throws -> Result {
        let sink = try Sink()
        let path = "\(bench.work)/ingest.colo"
        let worker = try Worker(bench, WorkerCommand(.startSource, source: SourceWorkerOptions(
            session: UUID(), domain: "ingest", host: "a", peer: "b", peerAddress: "127.0.0.1", peerPort: sink.port, secret: nil,
            streamPath: path, streamOwner: 0, streamGroup: 0, intervalMs: 0.001, intervalLimitMs: 0.001, ceilingBytes: 256 << 20,
            keepaliveMs: 1000, peerTimeoutMs: 5000)), descriptors: [], program: program)
        defer { worker.end() }
        try worker.await(.ready)
        let qemu = try UnixSocket.connect(path)
        try push(qemu.raw, opening())
        let ready = try readFully(qemu.raw, count: 4, deadline: MonotonicTime.now.adding(milliseconds: 30_000), during: "COLO")
        guard ready == be32(0) else { throw BenchFailure("The worker said \(ready), not READY") }
        let processor = processorSeconds(worker.pid)
        let begin = MonotonicTime.now
        for epoch in 0..<epochs { try sendEpoch(epoch, qemu.raw) }
        try waitFor("the last commit", seconds: 30) { worker.statistics[.committedEpoch] >= UInt64(epochs) }
        let seconds = MonotonicTime.now.milliseconds(since: begin) / 1000
        let gibibytes = Double(epochs * body.count) / Double(1 << 30)
        return Result(rate: gibibytes / seconds, ingestRate: gibibytes / (ingestMilliseconds / 1000),
                      processorSecondsPerGiB: (processorSeconds(worker.pid) - processor) / gibibytes)
    }

    /// Header, configuration, block list, an empty first pass and the first device state with its description.
    private func opening() -> [UInt8] {
        let bytes = UInt64(IngestBenchmark.regionPages) << 12
        let description = Array("{\"page_size\": 4096}".utf8)
        return concatenated(
            Array("QEVM".utf8), be32(3), [0x07], be32(2), Array("pc".utf8),
            [0x01], be32(2), [3], Array("ram".utf8), be32(0), be32(4), be64(bytes | 4),
            [6], Array("pc.ram".utf8), be64(bytes), be64(0x10), [0x7e], be32(2),
            [0x03], be32(2), be64(0x10), [0x7e], be32(2),
            [0x04, 0, 0, 0, 0], [0x00, 0x06], be32(UInt32(description.count)), description)
    }
}

/// A shadow that acknowledges every commit and lets the kernel throw the rest away (recv with MSG_TRUNC).
private final class Sink: @unchecked Sendable {
    let port = UInt16.random(in: 30_000...40_000)
    private static let openingSecret = (0..<192).map { UInt8(truncatingIfNeeded: $0 &* 167 &+ 43) }
    private var sessionSecret: [UInt8] = []
    private var sequence: UInt64 = 0

    init() throws {
        let listener = try TCP.listen(Endpoint(address: "127.0.0.1", port: port)).release()
        startThread("sink") { [self] in
            let deadline = MonotonicTime.now.adding(milliseconds: 30_000)
            guard let accepted = (try? acceptConnection(listener, until: deadline)) ?? nil else { return }
            close(listener)
            TCP.tune(accepted.raw, stallMilliseconds: 5000)
            do {
                _ = try Handshake.accept(accepted.raw, secret: .none, deadline: deadline)
                try Handshake.conclude(accepted.raw, .welcome, deadline: deadline)
                try serve(accepted.raw)
            } catch ChannelError.closed {
            } catch {
                print("sink: \(error)")
            }
        }
    }

    /// Frames as Sources/Replication/Frame.swift has them.
    private func serve(_ fd: Int32) throws {
        while true {
            let header = try readFully(fd, count: 40, deadline: nil, during: "a frame")
            func word(_ at: Int, _ bytes: Int) -> UInt64 { (0..<bytes).reduce(0) { $0 | UInt64(header[at + $1]) << (8 * UInt64($1)) } }
            let length = Int(word(36, 4))
            switch header[12] {
            case 1:
                let payload = try readFully(fd, count: length, deadline: nil, during: "a frame")
                guard let hello = try JSONSerialization.jsonObject(with: Data(payload[24...])) as? [String: Any],
                      let secret = (hello["hashSecret"] as? String).flatMap({ Data(base64Encoded: $0) }) else { throw BenchFailure("No hello") }
                sessionSecret = Array(secret)
                let welcome = Array("{\"committedEpoch\":0}".utf8)
                try send(fd, type: 16, epoch: 0, location: UInt64(welcome.count), blob: welcome, secret: Self.openingSecret)
            case 4:
                try discard(fd, length)
                let epoch = word(24, 8)
                try send(fd, type: 17, epoch: epoch, location: epoch, blob: [], secret: sessionSecret)
            default:
                try discard(fd, length)
            }
        }
    }

    private func discard(_ fd: Int32, _ length: Int) throws {
        var left = length
        while left > 0 {
            let n = recv(fd, nil, left, Int32(MSG_TRUNC))
            guard n > 0 else { throw ChannelError.closed(received: length - left, expected: length) }
            left -= n
        }
    }

    private func send(_ fd: Int32, type: UInt8, epoch: UInt64, location: UInt64, blob: [UInt8], secret: [UInt8]) throws {
        func le64(_ value: UInt64) -> [UInt8] { withUnsafeBytes(of: value.littleEndian) { Array($0) } }
        func le32(_ value: Int) -> [UInt8] { withUnsafeBytes(of: UInt32(value).littleEndian) { Array($0) } }
        let hash = blob.isEmpty ? XXH128_hash_t() : cxxhash_128(blob, blob.count, secret, secret.count)
        let covered = concatenated(Array("SVF1".utf8), le32(Int(type)), le64(sequence), le64(epoch), le32(1), le32(24 + blob.count),
                                   le64(location), le64(hash.low64), le64(hash.high64))
        let checksum = cxxhash_64(covered, covered.count, secret, secret.count)
        try writeFully(fd, le64(checksum) + covered + blob, deadline: MonotonicTime.now.adding(milliseconds: 5000), during: "a frame")
        sequence += 1
    }
}
