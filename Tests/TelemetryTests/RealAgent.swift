import ControlProtocol
import Foundation
import Glibc
import Platform
import XCTest
@testable import Telemetry

/// A real qemu-ga, of this machine, that answers on a unix socket as it would on a guest's channel.
final class RealAgent: @unchecked Sendable {
    private let folder: String
    private let process = Process()
    private let channel: LineChannel

    private static func program() throws -> String {
        let repository = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent().path
        let folders = (ProcessInfo.processInfo.environment["PATH"] ?? "").split(separator: ":").map(String.init) + [repository + "/.build/qemu-ga/usr/sbin"]
        guard let folder = folders.first(where: { access($0 + "/qemu-ga", X_OK) == 0 }) else {
            throw XCTSkip("No qemu-ga (Tests/run.sh unpacks it from Debian's package)")
        }
        return folder + "/qemu-ga"
    }

    /// - Parameters:
    ///   - without: commands that it does not offer.
    ///   - path: in front of PATH of the programs that it runs, where these ask for it.
    init(without: [String] = []) throws {
        folder = "/tmp/sv-agent-\(UUID().uuidString.prefix(8))"
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        process.executableURL = URL(fileURLWithPath: try Self.program())
        process.arguments = ["-m", "unix-listen", "-p", folder + "/s", "-t", folder, "-f", folder + "/pid"] + (without.isEmpty ? [] : ["-b", without.joined(separator: ",")])
        (process.standardInput, process.standardOutput, process.standardError) = (FileHandle.nullDevice, FileHandle.nullDevice, FileHandle.nullDevice)
        try process.run()
        let deadline = MonotonicTime.now.adding(milliseconds: 5000)
        while true {
            if let socket = try? UnixSocket.connect(folder + "/s") {
                channel = LineChannel(socket, ceiling: 64 << 20)
                return
            }
            guard process.isRunning, .now < deadline else { throw SystemError("connect", folder + "/s") }
            usleep(5000)
        }
    }

    deinit {
        kill(process.processIdentifier, SIGCONT)
        kill(process.processIdentifier, SIGKILL)
        process.waitUntilExit()
        try? FileManager.default.removeItem(atPath: folder)
    }

    /// It answers nothing any more.
    func hang() { kill(process.processIdentifier, SIGSTOP) }
    var pid: Int { Int(process.processIdentifier) }

    func agentChannel(limitMs: Double = 15_000, mayAsk: @escaping () -> Bool = { true }) -> AgentChannel {
        AgentChannel(limitMs: limitMs, mayAsk: mayAsk) { [channel] json, seconds in
            let deadline = MonotonicTime.now.adding(milliseconds: Double(seconds) * 1000)
            try channel.writeLine(Array(json.utf8), deadline: deadline)
            return String(decoding: try channel.readLine(deadline: deadline) ?? [], as: UTF8.self)
        }
    }
}
