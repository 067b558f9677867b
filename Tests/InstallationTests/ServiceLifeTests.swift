import Configuration
import ControlProtocol
import Foundation
import Glibc
import Platform
import XCTest
@testable import Service

/// A real service on libvirt's test driver, with this process in systemd's place.
final class ServiceLifeTests: XCTestCase {
    /// `shadow-virt serve` in a folder of its own.
    private final class Running {
        let folder: TemporaryFolder
        let pid: pid_t
        private let notify: Descriptor
        private(set) var messages: [(text: String, time: MonotonicTime)] = []

        var socket: String { folder.path + "/control.sock" }
        var log: String { FileManager.default.contents(atPath: folder.path + "/log").map { String(decoding: $0, as: UTF8.self) } ?? "" }

        init(watchdogMs: Int) throws {
            try XCTSkipUnless(geteuid() == 0, "not root: the service needs it")
            folder = try TemporaryFolder()
            let socket = try Descriptor(checking: Glibc.socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue), 0), "socket")
            var address = sockaddr_un()
            address.sun_family = sa_family_t(AF_UNIX)
            let path = folder.path + "/notify"
            withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
            let bound = withUnsafePointer(to: &address) {
                $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { [raw = socket.raw] in bind(raw, $0, socklen_t(MemoryLayout<sockaddr_un>.size)) }
            }
            guard bound == 0 else { throw SystemError("bind", path) }
            notify = socket
            try Self.configure(folder)
            pid = try start([Product.program, "serve", "--config", folder.path + "/c.conf"], err: folder.path + "/log", environment: [
                "NOTIFY_SOCKET": path, "WATCHDOG_USEC": "\(watchdogMs * 1000)", "PATH": "/usr/bin:/bin",
            ])
        }

        deinit {
            kill(pid, SIGCONT)
            kill(pid, SIGKILL)
            waitpid(pid, nil, 0)
        }

        static func configure(_ folder: TemporaryFolder, _ more: String = "", port: Int = Int.random(in: 20000...60000)) throws {
            let path = folder.path
            _ = try folder.write("""
                libvirt_uri = "test:///default"
                listen = "127.0.0.1:\(port)"
                control_socket = "\(path)/control.sock"
                runtime_dir = "\(path)/run"
                state_dir = "\(path)/state"
                metrics_listen = "off"
                \(more)

                """, to: "c.conf")
        }

        /// Takes what has come to systemd's socket.
        func receive() {
            var bytes = [UInt8](repeating: 0, count: 4096)
            while true {
                let count = recv(notify.raw, &bytes, bytes.count, 0)
                guard count > 0 else { return }
                messages.append((String(decoding: bytes[..<count], as: UTF8.self), .now))
            }
        }

        func received(_ text: String, since: MonotonicTime = MonotonicTime(nanoseconds: 0)) -> Int {
            receive()
            return messages.count { $0.time >= since && $0.text.contains(text) }
        }
    }

    func testWatchdogGetsSignsOfLifeWhileTheServiceAnswersOnly() throws {
        try skipUnlessInstalled("strace", package: "strace")
        let service = try Running(watchdogMs: 600)
        try waitUntil("ready", seconds: 30) { service.received("READY=1") > 0 }
        try waitUntil("signs of life", seconds: 20) { service.received("WATCHDOG=1") >= 3 }

        // Nobody accepts any more: what strace holds up is the one system call, the rest of the service goes on.
        let thread = try XCTUnwrap(Self.thread("control-accept", of: service.pid))
        let strace = try start(["strace", "-qq", "-p", "\(thread)", "-e", "trace=accept4", "-e", "inject=accept4:delay_enter=60000000"],
                               environment: ProcessInfo.processInfo.environment)
        var isTracing = true
        func end() {
            guard isTracing else { return }
            isTracing = false
            kill(strace, SIGKILL)
            waitpid(strace, nil, 0)
        }
        defer { end() }
        try waitUntil("the service notices", seconds: 30) { service.log.contains("does not answer itself") }
        let silent = MonotonicTime.now
        usleep(1_500_000)
        XCTAssertEqual(service.received("WATCHDOG=1", since: silent), 0, "signs of life though nobody answers")
        end()
        try waitUntil("signs of life again", seconds: 30) { service.received("WATCHDOG=1", since: silent) > 0 }
        XCTAssertTrue(service.log.contains("answers again"))

        // The whole process.
        kill(service.pid, SIGSTOP)
        service.receive()
        let stopped = MonotonicTime.now
        usleep(1_000_000)
        XCTAssertEqual(service.received("WATCHDOG=1", since: stopped), 0)
    }

    private static func thread(_ name: String, of pid: pid_t) -> pid_t? {
        ((try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(pid)/task")) ?? []).first { task in
            FileManager.default.contents(atPath: "/proc/\(pid)/task/\(task)/comm").map { String(decoding: $0, as: UTF8.self).hasPrefix(name) } ?? false
        }.flatMap { pid_t($0) }
    }

    /// What is missing is a finding like any other, and the rest is looked at all the same; with the service and without.
    func testDoctorWithoutLibvirt() throws {
        let service = try Running(watchdogMs: 60_000)
        try waitUntil("ready", seconds: 30) { service.received("READY=1") > 0 }
        let there = try execute([Product.program, "doctor", "--config", service.folder.path + "/c.conf"])
        XCTAssertTrue(there.out.contains("ok       libvirt "), "\(there)")
        let uri = "qemu:///system?socket=/nonexistent/sock"
        _ = try service.folder.write("libvirt_uri = \"\(uri)\"\ncontrol_socket = \"/nonexistent/control.sock\"\nmetrics_listen = \"off\"\n", to: "none.conf")
        for words in [[], ["web1"]] {
            let ending = try execute([Product.program, "doctor", "--config", service.folder.path + "/none.conf"] + words)
            XCTAssertEqual(ending.status, 2, "\(ending)")
            XCTAssertTrue(ending.out.contains("FAILED   libvirt  No connection to \(uri): ") && ending.out.contains("kvm") && ending.out.contains("secret"), "\(ending)")
            XCTAssertTrue(ending.out.contains("Start its daemon (`systemctl start libvirtd` or `virtqemud`)"), "\(ending)")
        }
    }

    func testReload() throws {
        let service = try Running(watchdogMs: 60_000)
        try waitUntil("ready", seconds: 30) { service.received("READY=1") > 0 }
        let client = ControlClient(path: service.socket)
        func hook(_ name: String) throws {
            var request = ControlRequest(.hook)
            request.hook = HookCall(domain: name, operation: .started, subOperation: "begin")
            XCTAssertNil(try client.exchange(request).failure)
        }
        func doctor(to host: String) throws -> String { try client.exchange(ControlRequest(.doctor, to: host)).failure?.message ?? "" }

        // The level is "info": a call of the hook is for developers.
        try hook("before")
        XCTAssertTrue(try doctor(to: "b").contains("Unknown host b"))
        try Running.configure(service.folder, "log_level = \"debug\"\nhost_name = \"other\"\npeers = [ \"b 192.0.2.2:16520 test:///default\" ]\ninterval_ms = 40\n", port: 1)
        kill(service.pid, SIGHUP)
        try waitUntil("the end of the reload", seconds: 20) { service.received("READY=1") > 1 }
        XCTAssertEqual(service.received("RELOADING=1\nMONOTONIC_USEC="), 1)
        XCTAssertTrue(service.log.contains("was read again: log_level is debug; workers that run keep theirs; peer b is 192.0.2.2:16520 test:///default; "
            + "interval_ms is 40 for what begins from now on"), service.log)
        XCTAssertTrue(service.log.contains("host_name, listen changed in"), service.log)
        XCTAssertFalse(try doctor(to: "b").contains("Unknown host b"))
        try hook("after")
        try waitUntil("the call in the log") { service.log.contains("libvirt's hook: after started begin") }
        XCTAssertFalse(service.log.contains("before started"), service.log)

        // A file that makes no sense changes nothing and ends nothing.
        _ = try service.folder.write("interval_ms = \"soon\"\n", to: "c.conf")
        kill(service.pid, SIGHUP)
        try waitUntil("the complaint", seconds: 20) { service.log.contains("The configuration stays as it was") && service.received("READY=1") > 2 }
        XCTAssertNil(try client.exchange(ControlRequest(.ping)).failure)
        XCTAssertFalse(try doctor(to: "b").contains("Unknown host b"))
    }
}

final class WatchdogTests: XCTestCase {
    func testOnlyWhenItIsAskedFor() {
        XCTAssertNil(Watchdog(environment: [:]) { _ in true })
        XCTAssertNil(Watchdog(environment: ["WATCHDOG_USEC": "soon"]) { _ in true })
        XCTAssertNil(Watchdog(environment: ["WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"]) { _ in true }, "meant for another process")
        XCTAssertNotNil(Watchdog(environment: ["WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "\(getpid())"]) { _ in true })
    }
}

final class ConfigurationReloadTests: XCTestCase {
    private func parse(_ text: String) throws -> ServiceConfiguration { try ServiceConfiguration(bytes: Array(text.utf8), file: "t.conf", environment: [:]) }

    func testEveryKeyEitherChangesOrIsNamed() throws {
        let values = [
            "host_name": "\"z\"", "libvirt_uri": "\"test:///x\"", "listen": "\"127.0.0.1:9\"", "control_socket": "\"/tmp/z\"", "control_socket_group": "\"z\"",
            "runtime_dir": "\"/tmp/z\"", "state_dir": "\"/tmp/z\"", "secret_file": "\"/tmp/z\"", "metrics_listen": "\"off\"", "peers": "[ \"z 192.0.2.9:1 test:///default\" ]",
            "interval_ms": "41", "interval_limit_ms": "1001", "unsent_ceiling_mib": "257", "keepalive_ms": "1001", "peer_timeout_ms": "5001", "log_level": "\"error\"",
            "labels": "\"rack=z\"", "on_drift": "\"swap\"", "drift_swap_after": "61", "interval_min_ms": "7", "periodic_interval_min_ms": "2001", "telemetry_interval": "6",
            "probe_directories": "[ \"/tmp\" ]", "bmc_address": "\"local\"", "bmc_user": "\"z\"", "bmc_password_file": "\"/tmp/z\"", "bmc_privilege": "\"operator\"",
            "bmc_cipher_suite": "17", "bmc_workarounds": "[ \"discretereading\" ]", "bmc_interval": "31",
            "bmc_protocol": "\"1.5\"", "bmc_authentication": "\"md2\"", "bmc_kg_file": "\"/tmp/z\"", "bmc_driver": "\"kcs\"", "bmc_driver_device": "\"/dev/z\"",
            "guest_exec": "0", "shadow_replace_after": "601",
        ]
        let old = try parse("")
        for key in ServiceConfiguration.keyNames {
            XCTAssertNotNil(values[key], "a value for \(key) is missing above")
            let reload = ConfigurationReload(from: old, to: try parse("\(key) = \(values[key] ?? "")"))
            XCTAssertEqual(reload.needsRestart.count + reload.changes.count, 1, key)
            if reload.needsRestart == [key] {
                XCTAssertEqual(reload.configuration, old, "\(key) took effect though it needs a restart")
            } else {
                XCTAssertNotEqual(reload.configuration, old, key)
            }
        }
        XCTAssertEqual(ConfigurationReload(from: old, to: old).changes, [])
    }
}
