import Foundation
import Glibc
import Platform

/// A QEMU of our own, without libvirt, and its monitor.
final class QEMU {
    private let process: Subprocess
    private let monitor: Descriptor
    private var pending: [UInt8] = []
    /// Events in order; `at` is QEMU's own time of them, seconds.
    private(set) var events: [(name: String, at: Double)] = []
    var pid: pid_t { process.pid }

    /// Not on IDE: QEMU 7.2's fails an assertion now and then when it is stopped at an epoch's rate (bmdma_active_if).
    /// Starts the ledger guest, or, with `incoming`, an empty machine that waits for it.
    init(_ bench: Bench, name: String, image: String = "ledger", memoryMiB: Int = 64, incoming: Bool = false) throws {
        let socket = "\(bench.work)/\(name).qmp"
        unlink(socket)
        process = try Subprocess.spawn("/usr/bin/env", arguments: [
            "qemu-system-x86_64", "-accel", "kvm", "-m", "\(memoryMiB)", "-machine", "pc", "-nodefaults", "-display", "none",
            "-vga", "std", "-drive", "file=\(bench.guest(image)),format=raw,if=virtio,snapshot=on", "-serial", "file:\(bench.work)/\(name).serial",
            "-qmp", "unix:\(socket),server=on,wait=off",
        ] + (incoming ? ["-incoming", "defer"] : []), descriptors: [])
        let deadline = MonotonicTime.now.adding(milliseconds: 10_000)
        while true {
            if let connected = try? UnixSocket.connect(socket) {
                monitor = connected
                break
            }
            guard deadline > .now else { throw BenchFailure("QEMU \(name) does not answer on \(socket)") }
            usleep(10_000)
        }
        _ = try line()
        try command("qmp_capabilities")
        if !incoming {
            try waitFor("the guest's first tick", seconds: 20) {
                ((try? String(contentsOfFile: "\(bench.work)/\(name).serial", encoding: .utf8)) ?? "").contains("\nT 2")
            }
        }
    }

    func end() {
        process.signal(SIGKILL)
        _ = process.wait(until: MonotonicTime.now.adding(milliseconds: 5000))
    }

    private func line() throws -> [UInt8] {
        while true {
            if let end = pending.firstIndex(of: 10) {
                defer { pending.removeSubrange(...end) }
                return Array(pending[..<end])
            }
            var buffer = [UInt8](repeating: 0, count: 256 << 10)
            let got = retryingInterrupts { read(monitor.raw, &buffer, buffer.count) }
            guard got > 0 else { throw BenchFailure("QEMU closed its monitor") }
            pending += buffer[..<got]
        }
    }

    @discardableResult
    func command(_ name: String, _ arguments: [String: Any] = [:]) throws -> [String: Any] {
        let request = try JSONSerialization.data(withJSONObject: ["execute": name, "arguments": arguments]) + [10]
        try writeFully(monitor.raw, Array(request), deadline: MonotonicTime.now.adding(milliseconds: 5000), during: "a QMP command")
        while true {
            let bytes = try line()
            guard let message = try JSONSerialization.jsonObject(with: Data(bytes)) as? [String: Any] else { continue }
            if let event = message["event"] as? String {
                let time = message["timestamp"] as? [String: Any]
                let seconds = (time?["seconds"] as? Double) ?? 0
                events.append((event, seconds + ((time?["microseconds"] as? Double) ?? 0) / 1e6))
            } else if let error = message["error"] as? [String: Any] {
                throw BenchFailure("QEMU refused \(name): \(error["desc"] ?? "")")
            } else {
                return message["return"] as? [String: Any] ?? [:]
            }
        }
    }

    /// Reads the events that have come and forgets the older ones.
    func takeEvents() throws -> [(name: String, at: Double)] {
        try command("query-status")
        defer { events = [] }
        return events
    }

    // MARK: COLO

    func startCOLO(_ uri: String, delayMs: Int) throws {
        try command("migrate-set-capabilities", ["capabilities": [["capability": "x-colo", "state": true]]])
        try command("migrate-set-parameters", ["x-checkpoint-delay": delayMs, "max-bandwidth": 10_000_000_000, "downtime-limit": 100])
        try command("migrate", ["uri": uri])
    }

    func setDelay(_ delayMs: Int) throws { try command("migrate-set-parameters", ["x-checkpoint-delay": delayMs]) }

    /// Ends COLO after its other end has gone; the guest runs on.
    func endCOLO() throws {
        try command("x-colo-lost-heartbeat")
        try waitFor("the end of COLO", seconds: 10) {
            (try command("query-migrate")["status"] as? String) != "colo"
        }
        try waitFor("the capability to go", seconds: 10) {
            (try? command("migrate-set-capabilities", ["capabilities": [["capability": "x-colo", "state": false]]])) != nil
        }
        try waitFor("the guest to run on", seconds: 10) { (try command("query-status")["status"] as? String) == "running" }
    }
}

/// From each STOP to the RESUME after it, milliseconds.
func pauses(_ events: [(name: String, at: Double)]) -> [Double] {
    var stopped: Double?
    var pauses: [Double] = []
    for event in events {
        switch event.name {
        case "STOP": stopped = event.at
        case "RESUME":
            if let begin = stopped { pauses.append((event.at - begin) * 1000) }
            stopped = nil
        default: break
        }
    }
    return pauses
}
