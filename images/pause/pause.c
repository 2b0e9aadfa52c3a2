/* Holds a pod's namespaces open: ends on SIGTERM and SIGINT, and takes the zombies of a shared process namespace. */
#include <errno.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void) {
	sigset_t wanted;
	int received;

	sigemptyset(&wanted);
	sigaddset(&wanted, SIGTERM);
	sigaddset(&wanted, SIGINT);
	sigaddset(&wanted, SIGCHLD);
	/* Process 1 gets only signals it asked for: blocked and waited for, none is lost between two looks. */
	if (sigprocmask(SIG_BLOCK, &wanted, NULL))
		return 1;
	for (;;) {
		if (sigwait(&wanted, &received))
			return 1;
		if (received != SIGCHLD)
			return 0;
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
	}
}
