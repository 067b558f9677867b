import Foundation
import Glibc
import Platform
import XCTest

/// The sources and the program that was built along with the tests.
enum Product {
    static let repository = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent().path
    static let program = ProcessInfo.processInfo.environment["SHADOW_VIRT_BINARY"] ?? Bundle.main.bundleURL.appendingPathComponent("shadow-virt").path
    static let hookProgram = program + "-hook"
}

/// How a program ended and what it printed.
struct Ending: CustomStringConvertible {
    /// Exit status; 128 + signal; -1 when it was killed at its time limit.
    var status: Int32
    var out: String
    var err: String
    var milliseconds: Double
    /// Of processor time, its own and that of all whose end it waited for.
    var processorMilliseconds: Double

    /// In one line: what a failure is known by does not get lost where only its first line is shown.
    var description: String {
        "status \(status) after \(Int(milliseconds)) ms\(out.isEmpty ? "" : "; out: \(out)")\(err.isEmpty ? "" : "; err: \(err)")".replacing("\n", with: "\\n")
    }
}

/// Starts a program; `words[0]` is searched in PATH. Its output goes to the end of files. `input`: its descriptor 0; -1: closed; nil: /dev/null.
func start(_ words: [String], input: Int32? = nil, out: String = "/dev/null", err: String = "/dev/null", environment: [String: String]) throws -> pid_t {
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    posix_spawn_file_actions_addopen(&actions, 1, out, O_WRONLY | O_CREAT | O_APPEND, 0o600)
    posix_spawn_file_actions_addopen(&actions, 2, err, O_WRONLY | O_CREAT | O_APPEND, 0o600)
    if let input, input >= 0 {
        posix_spawn_file_actions_adddup2(&actions, input, 0)
    } else if input == nil {
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
    } else {
        posix_spawn_file_actions_addclose(&actions, 0)
    }
    var argv: [UnsafeMutablePointer<CChar>?] = words.map { strdup($0) } + [nil]
    var envp: [UnsafeMutablePointer<CChar>?] = environment.map { strdup("\($0)=\($1)") } + [nil]
    defer { (argv + envp).forEach { free($0) } }
    var pid: pid_t = 0
    let code = posix_spawnp(&pid, words[0], &actions, nil, &argv, &envp)
    guard code == 0 else { throw SystemError("posix_spawn", words[0], code: code) }
    return pid
}

/// Runs a program and waits for it. Output goes through files, so that a process it leaves behind holds nobody up. `input` as above.
func execute(_ words: [String], input: Int32? = nil, environment: [String: String] = [:], limit seconds: Double = 60) throws -> Ending {
    let folder = try TemporaryFolder()
    let (out, err) = (folder.path + "/out", folder.path + "/err")
    let begin = MonotonicTime.now
    let pid = try start(words, input: input, out: out, err: err, environment: ProcessInfo.processInfo.environment.merging(environment) { $1 })
    var status: Int32 = 0, isOver = false
    var usage = rusage()
    while wait4(pid, &status, WNOHANG, &usage) == 0 {
        if MonotonicTime.now.milliseconds(since: begin) > seconds * 1000, !isOver {
            isOver = true
            kill(pid, SIGKILL)
        }
        usleep(500)
    }
    let milliseconds = MonotonicTime.now.milliseconds(since: begin)
    func inMilliseconds(_ time: timeval) -> Double { Double(time.tv_sec) * 1000 + Double(time.tv_usec) / 1000 }
    func text(_ path: String) -> String { String(decoding: FileManager.default.contents(atPath: path) ?? Data(), as: UTF8.self) }
    return Ending(status: isOver ? -1 : status & 0x7f == 0 ? (status >> 8) & 0xff : 128 + (status & 0x7f), out: text(out), err: text(err), milliseconds: milliseconds,
                  processorMilliseconds: inMilliseconds(usage.ru_utime) + inMilliseconds(usage.ru_stime))
}

/// A folder that goes with this value. Short, because paths of sockets are.
final class TemporaryFolder {
    let path: String

    init() throws {
        var template = Array("/tmp/svi.XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw SystemError("mkdtemp") }
        path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        chmod(path, 0o755)
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    func write(_ text: String, to name: String, mode: mode_t = 0o644) throws -> String {
        let file = path + "/" + name
        try FileManager.default.createDirectory(atPath: (file as NSString).deletingLastPathComponent, withIntermediateDirectories: true)
        try text.write(toFile: file, atomically: false, encoding: .utf8)
        chmod(file, mode)
        return file
    }
}

func isInstalled(_ tool: String) -> Bool {
    ((ProcessInfo.processInfo.environment["PATH"] ?? "").split(separator: ":").map(String.init) + ["/usr/sbin", "/sbin"]).contains { access("\($0)/\(tool)", X_OK) == 0 }
}

func skipUnlessInstalled(_ tool: String, package: String) throws {
    try XCTSkipUnless(isInstalled(tool), "no \(tool) (Debian: apt install \(package))")
}

func waitUntil(_ what: String, seconds: Double = 10, _ condition: () -> Bool) throws {
    let end = MonotonicTime.now.adding(milliseconds: seconds * 1000)
    while !condition() {
        guard end > .now else { throw Unmet(description: "Not within \(seconds) s: \(what)") }
        usleep(5000)
    }
}

struct Unmet: Error, CustomStringConvertible { var description: String }
