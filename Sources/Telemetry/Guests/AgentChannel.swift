import Foundation
import Libvirt
import Platform

/// A way to one guest's agent, with a limit for each answer and one for all of them together.
struct AgentChannel {
    /// Why no question was asked.
    enum Refusal: Error {
        /// The guest changes hosts.
        case notNow
        /// The time for all questions is over.
        case late
    }

    /// For one answer. libvirt keeps other agent commands of this domain waiting meanwhile, and no job of its hypervisor's.
    static let seconds: Int32 = 2

    let deadline: MonotonicTime
    /// Looked at before each question.
    let mayAsk: () -> Bool
    let transport: (_ json: String, _ seconds: Int32) throws -> String

    /// - Parameter limitMs: for all questions together.
    init(limitMs: Double, mayAsk: @escaping () -> Bool, transport: @escaping (_ json: String, _ seconds: Int32) throws -> String) {
        deadline = MonotonicTime.now.adding(milliseconds: limitMs)
        self.mayAsk = mayAsk
        self.transport = transport
    }

    /// - Throws: `Refusal`; `MonitorError`, `DecodingError`, `AgentReplyTooLong` of an agent that answers; what the transport throws when none does.
    func ask<Answer: Decodable>(_ command: String, _ arguments: [String: JSONValue] = [:], as type: Answer.Type) throws -> Answer {
        guard mayAsk() else { throw Refusal.notNow }
        guard MonotonicTime.now < deadline else { throw Refusal.late }
        return try AgentWire.answer(type, from: try transport(AgentWire.request(command, arguments), Self.seconds), command: command)
    }

    /// It is the agent's answer that is bad; it does answer, and may answer something else.
    static func isOfAnswer(_ error: any Error) -> Bool { error is MonitorError || error is DecodingError || error is AgentReplyTooLong || error is AgentNonsense }
}

/// An answer in the right form that cannot be true.
struct AgentNonsense: Error, CustomStringConvertible {
    let command: String
    var description: String { "The guest agent's answer to \(command) makes no sense" }
}

// MARK: Files

extension AgentChannel {
    static let fileCommands: Set = ["guest-file-open", "guest-file-read", "guest-file-close"]
    /// Of one read; it comes as four bytes for three.
    private static let chunk = 64 << 10

    private struct Part: Decodable {
        var count: Int
        var data: String
        var eof: Bool
        enum CodingKeys: String, CodingKey {
            case count, eof
            case data = "buf-b64"
        }
    }

    /// The beginning of a file, at most `most` bytes.
    func file(_ path: String, most: Int) throws -> [UInt8] {
        let handle = try ask("guest-file-open", ["path": .string(path), "mode": .string("r")], as: Int64.self)
        do {
            let bytes = try content(handle, most)
            close(handle)
            return bytes
        } catch {
            // One that does not answer would only keep us waiting again.
            if Self.isOfAnswer(error) || error is Refusal { close(handle) }
            throw error
        }
    }

    func text(_ path: String, most: Int = 64 << 10) throws -> String { String(decoding: try file(path, most: most), as: UTF8.self) }

    private func content(_ handle: Int64, _ most: Int) throws -> [UInt8] {
        var bytes: [UInt8] = []
        while bytes.count < most {
            let wanted = min(Self.chunk, most - bytes.count)
            let part = try ask("guest-file-read", ["handle": .integer(handle), "count": .integer(Int64(wanted))], as: Part.self)
            guard let data = Data(base64Encoded: part.data), data.count == part.count, data.count <= wanted else { throw AgentNonsense(command: "guest-file-read") }
            bytes += data
            if part.eof || data.isEmpty { break }
        }
        return bytes
    }

    /// Whether or not it may be asked now: a handle that stays open is the guest's loss.
    private func close(_ handle: Int64) {
        guard let request = try? AgentWire.request("guest-file-close", ["handle": .integer(handle)]) else { return }
        _ = try? transport(request, Self.seconds)
    }
}

// MARK: Programs

extension AgentChannel {
    static let programCommands: Set = ["guest-exec", "guest-exec-status"]
    private static let pollMicroseconds: UInt32 = 40_000

    private struct Started: Decodable { var pid: Int64 }
    private struct Ended: Decodable {
        var exited: Bool
        var exitcode: Int?
        var data: String?
        enum CodingKeys: String, CodingKey {
            case exited, exitcode
            case data = "out-data"
        }
    }

    /// Runs a shell script in the guest, which limits its own time and output, and returns its exit status and output; nil status: a signal ended it.
    func run(_ script: String, _ words: [String] = []) throws -> (status: Int?, output: String) {
        let arguments = (["-c", script, "sh"] + words).map { JSONValue.string($0) }
        let environment = [JSONValue.string("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), .string("LC_ALL=C.UTF-8")]
        let pid = try ask("guest-exec", ["path": .string("/bin/sh"), "arg": .array(arguments), "env": .array(environment), "capture-output": .bool(true)], as: Started.self).pid
        while true {
            let ended = try ask("guest-exec-status", ["pid": .integer(pid)], as: Ended.self)
            guard ended.exited else {
                usleep(Self.pollMicroseconds)
                continue
            }
            guard let data = Data(base64Encoded: ended.data ?? "") else { throw AgentNonsense(command: "guest-exec-status") }
            return (ended.exitcode, String(decoding: data, as: UTF8.self))
        }
    }
}
