import ControlProtocol
import Foundation
import Glibc
import Platform
import XCTest
@testable import Metrics

enum Samples {
    /// As `status --format json` has it; the domain's own words may need escapes.
    static func domain(_ name: String = "web1", _ role: Role = .primary, _ state: ProtectionState = .protected) -> DomainStatus {
        let text = """
            {"domain": "x", "uuid": "8f8a7c1e-0000-4000-8000-000000000001", "role": "\(role.rawValue)", "peer": "b", "engine": "continuous", "state": "\(state.rawValue)",
             "reason": "", "since": "2024-05-01T10:00:00.250Z", "configured_interval_ms": 20, "interval_ms": 20, "epochs_per_second": 49, "epoch": 12345,
             "committed_epoch": 12344, "pause_ms_median": 0.62, "pause_ms_p99": 1.31, "lag_epochs": 1, "lag_bytes": 3355443, "last_commit_age_ms": 12.5, "rpo_ms": 31.25,
             "bytes_dirtied": 4294967296, "bytes_sent": 1073741824, "sync_bytes_done": 5, "sync_bytes_total": 10, "disk_bytes_sent": 7, "disk_writes": 8,
             "disks": [{"target": "vda", "state": "ready", "synced_bytes": 1, "total_bytes": 1}, {"target": "vdb", "state": "syncing", "synced_bytes": 0, "total_bytes": 1},
                       {"target": "sdc", "state": "shared", "synced_bytes": 0, "total_bytes": 0}],
             "missing_shadows": 1, "shadows": [{"peer": "b", "state": "protected", "reason": "", "since": "2024-05-01T10:00:00.250Z", "multiple": 1, "committed_epoch": 12344,
               "lag_epochs": 1, "lag_bytes": 3355443, "last_commit_age_ms": 12.5, "rpo_ms": 31.25, "bytes_sent": 77},
               {"peer": "c", "state": "degraded", "reason": "away", "since": "2024-05-01T10:00:00.250Z", "multiple": 10, "committed_epoch": 7, "lag_epochs": 0, "lag_bytes": 0, "bytes_sent": 0}],
             "drift_score": 0.25, "counters": {"epochs_captured": 12345, "pauses": 12345, "pause_ms_total": 7700, "bytes_resent": 9, "swaps": 2, "failovers": 1, "failures": 4, "resyncs": 3,
                          "degraded_seconds": 1.5}}
            """
        do {
            var domain = try ControlCodec.decode(DomainStatus.self, from: Array(text.utf8))
            domain.domain = name
            return domain
        } catch {
            preconditionFailure("\(error)")
        }
    }

    static func status(_ domains: [DomainStatus] = [domain()]) -> StatusReport {
        StatusReport(host: "a", version: "0.1.0", time: "2024-05-01T10:00:01.000Z", domains: domains)
    }

    /// All that a scrape of a service with these domains has.
    static func families(_ domains: [DomainStatus] = [domain()]) -> [MetricFamily] {
        ServiceMetrics.families(status(domains), events: [.swap: 2], libvirtIsConnected: true) + DomainMetrics.families(status(domains)) + HealthMetrics.families(health())
    }
}

/// A server on a port of its own for as long as this lives.
final class RunningServer: @unchecked Sendable {
    let port: UInt16
    private let listener: Int32

    init(_ limits: MetricsServer.Limits = .init(), families: @escaping @Sendable () -> [MetricFamily] = { Samples.families() }) throws {
        let descriptor = try TCP.listen(Endpoint(address: "127.0.0.1", port: 0))
        port = try TCP.localPort(descriptor.raw)
        listener = try descriptor.duplicate().release()
        let raw = descriptor.release()
        let server = MetricsServer(limits: limits, families: families)
        Thread.detachNewThread {
            let owned = Descriptor(owning: raw)
            server.accept(on: owned.raw)
        }
    }

    deinit {
        shutdown(listener, Int32(SHUT_RDWR))
        close(listener)
    }

    func connect() throws -> Descriptor {
        try TCP.connect(Endpoint(address: "127.0.0.1", port: port), deadline: .now.adding(milliseconds: 5000))
    }

    /// Sends these bytes and reads to the end of the answer.
    func ask(_ bytes: [UInt8], thenClose: Bool = false) throws -> String {
        let connection = try connect()
        _ = bytes.withUnsafeBytes { send(connection.raw, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
        if thenClose { shutdown(connection.raw, Int32(SHUT_WR)) }
        return try answer(connection)
    }

    func ask(_ text: String) throws -> String { try ask(Array(text.utf8)) }

    func answer(_ connection: borrowing Descriptor) throws -> String {
        var answer: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 65536)
        let deadline = MonotonicTime.now.adding(milliseconds: 10_000)
        while true {
            guard try !wait(connection.raw, for: .readable, until: deadline).isEmpty else { throw ChannelError.timedOut(during: "the answer, after \(answer.count) bytes") }
            let n = recv(connection.raw, &chunk, chunk.count, 0)
            guard n > 0 else { return String(decoding: answer, as: UTF8.self) }
            answer += chunk[..<n]
        }
    }
}

enum Tools {
    static let repository = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent().path

    /// Prometheus' own checker: on PATH, or where Tests/run.sh puts it.
    static func promtool() throws -> String {
        let folders = (ProcessInfo.processInfo.environment["PATH"] ?? "").split(separator: ":").map(String.init) + [repository + "/.build/promtool/usr/bin"]
        guard let folder = folders.first(where: { access($0 + "/promtool", X_OK) == 0 }) else {
            throw XCTSkip("No promtool (Debian: apt install prometheus, or Tests/run.sh, which unpacks it from that package)")
        }
        return folder + "/promtool"
    }

    static func run(_ words: [String], input: String = "", in folder: String? = nil) throws -> (status: Int32, output: String) {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: words[0])
        process.arguments = Array(words.dropFirst())
        if let folder { process.currentDirectoryURL = URL(fileURLWithPath: folder) }
        let base = NSTemporaryDirectory() + "/metrics-\(UUID().uuidString)"
        defer { for suffix in [".in", ".out"] { unlink(base + suffix) } }
        try input.write(toFile: base + ".in", atomically: false, encoding: .utf8)
        _ = FileManager.default.createFile(atPath: base + ".out", contents: nil)
        let output = try FileHandle(forWritingTo: URL(fileURLWithPath: base + ".out"))
        process.standardInput = try FileHandle(forReadingFrom: URL(fileURLWithPath: base + ".in"))
        (process.standardOutput, process.standardError) = (output, output)
        try process.run()
        process.waitUntilExit()
        return (process.terminationStatus, try String(contentsOfFile: base + ".out", encoding: .utf8))
    }
}
